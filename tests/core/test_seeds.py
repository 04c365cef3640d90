"""Seeds derived from names."""

from __future__ import annotations

from sweep.core.seeds import derive_seed


def test_seeds_depend_on_every_part_and_fit_a_signed_word() -> None:
    seeds = {derive_seed(0, "a", 0), derive_seed(1, "a", 0), derive_seed(0, "b", 0), derive_seed(0, "a", 1)}
    seeds |= {derive_seed("0", "a", 0), derive_seed("0a", 0), derive_seed(0, "a0")}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert derive_seed(0, "a", 0) == 2154334685170620845
