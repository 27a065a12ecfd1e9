"""The registry of pretrained weights, `registry.toml`: names, sources, digests, licences, key maps."""
