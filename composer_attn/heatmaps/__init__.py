"""Class activation maps: which regions of an image speak for a class, according to a network."""

from composer_attn.heatmaps.heat_maps import HeatMaps, heat_maps

__all__ = ["HeatMaps", "heat_maps"]
