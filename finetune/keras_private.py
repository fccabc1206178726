"""Every private hook of Keras and TensorFlow that the package uses, one documented function each."""
