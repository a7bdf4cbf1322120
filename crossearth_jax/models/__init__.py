"""The networks. Other packages call the pure functions of `network.SegmentationModel` and `style_network.StyleNetwork`.

Only `weights` also reads the tables of parameter names (`TORCH_NAMES`).
"""
