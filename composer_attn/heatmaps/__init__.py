"""Class activation maps: which regions of an image make a network predict a class."""

from composer_attn.heatmaps.heat_maps import HeatMaps, heat_maps

__all__ = ["HeatMaps", "heat_maps"]
