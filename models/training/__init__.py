"""From labelled photos to a model: data, augmentation, learning, calibration, and the run that joins them."""
