"""Reading and writing of images and videos, drawings and charts."""
