"""CDM: MRM, MDN and C-UNet, a file for each network of the paper."""
