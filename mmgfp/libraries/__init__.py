"""What is peculiar to MMDetection, MMPretrain and their relatives."""
