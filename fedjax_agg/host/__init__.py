"""Real keys and real processes: the only room with effects. Its extra is ``fedjax_agg[keys]``."""

try:
    import cryptography as _cryptography  # noqa: F401
except ImportError:
    raise ImportError(
        "fedjax_agg.host needs the package cryptography: python -m pip install 'fedjax_agg[keys]'"
    ) from None
