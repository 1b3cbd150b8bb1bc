"""Networks for objects in images: boxes, masks and keypoints."""
