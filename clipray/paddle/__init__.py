"""The configuration files of PaddleClas's CLIP, run as they are: translated to our commands."""
