"""How the names of files end that are images or sounds. Needs neither NumPy nor TensorFlow."""

IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
SOUNDS = (".wav", ".wave")
