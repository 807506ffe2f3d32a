"""RFC-exact ciphers and hashes in uint32 words; they draw no randomness themselves."""
