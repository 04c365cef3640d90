"""Selection of the Transformers class that loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def auto_class(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the auto class that loads a folder's model with its language-model head.

    Transformers lists some models with a vision tower (Gemma 3) as causal language models. It lists others (LLaVA,
    Qwen 2.5 VL) only as image-text-to-text models.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    kind = config.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM
