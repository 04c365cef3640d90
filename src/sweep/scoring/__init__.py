"""Measures of a point's generations.  This package knows text, token ids and numbers; not points, engines or MLflow.

Metric names are `group/measure`; the groups are `quality`, `divergence`, `health`, `perturbation` and `cost`.
"""
