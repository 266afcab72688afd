"""Analysis of a saved run: figures, mistakes, GradCAM, calibration and the report."""
