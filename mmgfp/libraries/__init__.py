"""Support for MMDetection, MMPretrain and other libraries of OpenMMLab."""
