"""Flower's own functions of secure aggregation, for ``protocols.py``: ``flwr``, extra ``bench``.

They are put together as ``flwr.client.mod.secure_aggregation.secaggplus_mod`` and
``flwr.server.workflow.secure_aggregation.secaggplus_workflow`` do, without the key agreements.
"""

import base64
import importlib.metadata
import os

REQUIREMENT = "flwr>=1.20"
# The defaults of Flower's workflow.
CLIPPING_RANGE, QUANTIZATION_RANGE, MODULUS = 8.0, 2**22, 2**32


def versions():
    """Of Flower and of the library of its Shamir; None where not installed."""
    found = {}
    for package in ("flwr", "pycryptodome"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def calls(update, k, t, answering):
    """The steps of one client with k neighbours, and the server's work on one of its secrets.

    Args:
        update: float32[d].
        k: neighbours.
        t: the threshold.
        answering: how many shares of a secret arrive.

    Returns:
        By name, functions without arguments: ``upload`` (quantise and mask), ``create`` (the
        shares of two secrets), ``reconstruct`` (one secret), and ``client``: all that a client
        computes in a round.
    """
    # Nothing is sent anywhere.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import (
        pseudo_rand_gen,
        share_keys_plaintext_concat,
        share_keys_plaintext_separate,
    )

    seeds, (own_seed, secret) = [os.urandom(32) for _ in range(k)], (os.urandom(32),) * 2
    channels = [base64.urlsafe_b64encode(seed) for seed in seeds]

    def upload():
        words = quantize([update], CLIPPING_RANGE, QUANTIZATION_RANGE)
        shapes = [update.shape]
        words = parameters_addition(words, pseudo_rand_gen(own_seed, MODULUS, shapes))
        for index, seed in enumerate(seeds):
            mask = pseudo_rand_gen(seed, MODULUS, shapes)
            add = parameters_addition if index % 2 else parameters_subtraction
            words = add(words, mask)
        return parameters_mod(words, MODULUS)

    def create():
        return [create_shares(one, t, k) for one in (own_seed, secret)]

    def client():
        shares = zip(*create())
        sealed = [
            encrypt(key, share_keys_plaintext_concat(1, 2, *pair))
            for key, pair in zip(channels, shares)
        ]
        for key, ciphertext in zip(channels, sealed):
            share_keys_plaintext_separate(decrypt(key, ciphertext))
        return upload()

    answers = create()[0][:answering]

    def reconstruct():
        return combine_shares(answers)

    assert reconstruct() == own_seed
    return {"upload": upload, "create": create, "reconstruct": reconstruct, "client": client}
