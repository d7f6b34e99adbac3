"""How training images are varied: settings, geometry, patches, colour, and the recipe that puts them in order."""
