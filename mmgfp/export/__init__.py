"""Export of pruned networks to ONNX files."""
