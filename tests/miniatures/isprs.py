"""Colours and stored numbers of Potsdam and Vaihingen."""

PALETTE = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
STORED = (1, 2, 3, 4, 5, 6)
TILE = 512


def tiles(pixels):
    """Return {(left, top, right, bottom): tile} with origins 0, 512, … and a last tile that ends at the edge."""
    height, width = pixels.shape[:2]
    rows, columns = ([*range(0, side - TILE, TILE), side - TILE] for side in (height, width))
    return {
        (left, top, left + TILE, top + TILE): pixels[top : top + TILE, left : left + TILE]
        for top in rows
        for left in columns
    }


def repacked(scene, image, stored, image_folder, label_folder):
    """Return {name: pixels} of a scene cut by the authors' converter."""
    boxes = {box: "_".join(map(str, box)) for box in tiles(image)}
    return {
        **{f"{image_folder}/{scene}_{boxes[box]}.png": tile for box, tile in tiles(image).items()},
        **{f"{label_folder}/{scene}_{boxes[box]}.png": tile for box, tile in tiles(stored).items()},
    }
