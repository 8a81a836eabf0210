"""Images and clips: opened, cut into tiles, turned into the numbers that an encoder takes."""
