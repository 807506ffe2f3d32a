"""How fast uploads become frames and back, and what of it is bits and what is the tag.

A cell of the grid is a width and a number of words. Rates count the words, four bytes each, per
second on one core, whatever the width: all parts of one cell compare.

    python benchmarks/packing.py            # a table
    python benchmarks/packing.py --json     # the same as JSON
    python benchmarks/packing.py --quick    # shorter uploads
"""

import _bench

BITS = (8, 16, 20, 24, 31, 32)
LENGTHS = (10**4, 10**6)
QUICK_LENGTHS = (10**4, 10**5)
PARTS = ("pack", "unpack", "pack_bits", "unpack_bits", "hmac", "copy")

TARGETS = {"gbps_pack": 0.5, "gbps_unpack": 0.5}


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        _measure(_bench.enter_worker(arguments.worker))
        return
    host = _bench.machine()
    _bench.progress(_bench.describe(host))
    task = {
        # Core 0 takes the interrupts.
        "cores": [_bench.allowed_cores()[-1]],
        "lengths": QUICK_LENGTHS if arguments.quick else LENGTHS,
        "seconds": 0.3 if arguments.quick else 3.0,
    }
    _show(_results(host, _bench.worker(__file__, task)), arguments.json)


def _measure(task) -> None:
    """The worker: all cells on the core it is pinned to."""
    rows = []
    for length in task["lengths"]:
        for bits in BITS:
            _bench.progress(f"{length} words of {bits} bits")
            samples = _bench.interleaved(_functions(bits, length), seconds=task["seconds"], most=50)
            rates = {
                part: [4e-9 * length / seconds for seconds in times]
                for part, times in samples.items()
            }
            row = {"bits": bits, "length": length}
            row["gbps"] = {part: _bench.summary(values) for part, values in rates.items()}
            row["milliseconds"] = {
                part: _bench.summary([1e3 * seconds for seconds in times])
                for part, times in samples.items()
            }
            rows.append(row)
    _bench.report(rows)


def _functions(bits, length):
    """What is measured in one cell."""
    import hmac

    import numpy as np

    from fedjax_agg.arithmetic import M31, Ring
    from fedjax_agg.wire import Header, Upload, layout_of, pack, unpack
    from fedjax_agg.wire.bits import pack_bits, unpack_bits

    group = M31() if bits == 31 else Ring(bits)
    # The largest word of 31 bits is no element of the field.
    high = 2**bits - (bits == 31)
    words = np.random.default_rng(bits).integers(0, high, length, np.uint64).astype(np.uint32)
    upload = Upload(words)
    layout, key = layout_of(upload, group), bytes(range(32))
    header = Header("upload", bytes(32), round_id=0, sender=1, receiver=0)
    frame, packed = pack(upload, layout, header, key), pack_bits(words, bits).tobytes()
    assert np.array_equal(unpack(frame, layout, header, key).words, words)
    return {
        "pack": lambda: pack(upload, layout, header, key),
        "unpack": lambda: unpack(frame, layout, header, key),
        "pack_bits": lambda: pack_bits(words, bits),
        "unpack_bits": lambda: unpack_bits(packed, bits, length),
        "hmac": lambda: hmac.digest(key, frame, "sha256"),
        "copy": lambda: words.tobytes(),
    }


def _results(host, rows):
    longest = max(row["length"] for row in rows)

    def over_widths(part):
        cells = [
            (f"{row['bits']} bits", row["gbps"][part]["median"])
            for row in rows
            if row["length"] == longest
        ]
        return _bench.over_cells(cells, largest_is_best=True)

    return {
        "what": f"GB/s of words on one core, over the widths of uploads of {longest} words; above "
        "is faster",
        "machine": host,
        **{f"gbps_{part}": over_widths(part) for part in PARTS},
        "targets": TARGETS,
        "rows": rows,
    }


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    print(_bench.describe(results["machine"]))
    _bench.table(
        ["words", "bits", *(f"{part} GB/s" for part in PARTS), "ms to pack"],
        [
            [row["length"], row["bits"]]
            + [row["gbps"][part]["median"] for part in PARTS]
            + [row["milliseconds"]["pack"]["median"]]
            for row in results["rows"]
        ],
    )
    print()
    _bench.table(
        ["over the widths", "best", "median", "worst", "worst at", "target"],
        [
            [
                f"gbps_{part}",
                *(results[f"gbps_{part}"][key] for key in ("best", "median", "worst", "worst_at")),
                TARGETS.get(f"gbps_{part}"),
            ]
            for part in PARTS
        ],
    )


if __name__ == "__main__":
    main()
