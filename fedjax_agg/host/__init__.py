"""Real keys and real processes: the only room with effects. Its extra is ``fedjax_agg[keys]``."""
