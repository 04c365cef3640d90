"""Measures of a point's generations. This package handles text, token ids and numbers, not points, engines or MLflow.

Metric names are `group/measure`. The groups are `quality`, `divergence`, `health`, `perturbation` and `cost`.
"""
