"""Who shares what with whom: graphs of neighbours, and shares of secrets."""
