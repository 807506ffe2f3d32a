"""What to do about each mistake, by the tag that ends its message."""

REMEDIES = {
    "group-type": "pass Ring(32), or the ring of a plan: plan_round(...).group",
    "ring-bits": "a word is a uint32, so choose at most 32 bits; plan_round(...) finds the "
    "smallest ring that holds the sum",
    "key-shape": "a key is 256 bits as uint32[8]: root_seed(), fixed_seed(0) or a key derived "
    "from one",
    "nonce-shape": "a nonce is 96 bits as uint32[3]",
    "bytes": "np.frombuffer(data, np.uint8) makes an array of bytes, and jax.vmap takes many",
    "byte-order": "ChaCha20 is little-endian, SHA-256 big-endian",
    "words": "pad bytes to whole words of 4, and make words with words_from_bytes",
    "hkdf-length": "use the output as a cipher's key where more bytes are needed",
    "hkdf-prk": "derive it with hkdf_extract",
    "label": "use a constant of key_schedule such as PAIR_MASK",
    "identifier": "count from 0 or 1, and use jax.vmap for many",
    "context-hash": "hash the model with context_hash, or other bytes with sha256",
    "seal-keys": "derive them with key_schedule.derive_keys, or call seal and open_sealed",
    "tag-shape": "pass on the Sealed message as it came",
    "frame": "drop it, and end the link if it goes on: a frame that is cut, changed, sent again or "
    "meant for another place is answered with nothing",
    "frame-message": "give what layout_of was given, with other values",
    "frame-key": "derive one for each link, as bytes",
    "frame-kind": "name what the frame holds; its direction is in sender and receiver",
    "frame-session": "name the session by its public seed, uint32[8], or by the 32 bytes of it",
    "field-dtype": "send flags, bytes and words only",
    "packed-bits": "an element has 1 to 32 bits: those of its group",
    "packed-elements": "give elements of the group, or of the width, that both ends agreed on",
    "packed-data": "pack_bits makes one stream of some elements, and nothing else is taken",
    "hmac-blocks": "end a key with zeros, and make the blocks of a message with template",
    "message-shape": "flatten the message to words, and use jax.vmap for many",
    "coefficients-shape": "give one uint32 coefficient for every key, such as 1 and 2**32 - 1",
    "keystream-length": "ask for a positive number of 32-bit words, or 0 for none",
    "keystream-start": "begin at a multiple of 16 words, the length of a ChaCha20 block",
    "keystream-counter": "RFC 8439 counts blocks of 16 words in 32 bits: use another nonce for "
    "what lies beyond",
    "seed": "an integer or a jax.random key holds at most 64 bits; pass root_seed(), or "
    "fixed_seed(0) where a predictable seed is meant",
    "fixed-seed": "count experiments from fixed_seed(0), or pass root_seed() itself",
    "num-clients": "the sum over one client is that client's update; take at least two",
    "sharing-clients": "shares have points of 16 bits: take fewer neighbours, smaller cohorts, or "
    "Plain() to simulate a larger one without masks",
    "first-client": "clients are counted from 1, and the last id is at most 2**31 - 1",
    "rows": "count rows from 0: session.rows(first, count) ends with row first + count - 1",
    "round-id": "count rounds from 0; after 2**32 - 1 rounds start again from a new seed",
    "session-type": "make one with simulated_session(root_seed(), num_clients=n, round_id=r)",
    "codec-type": "pass an instance such as FixedPoint(clip=1.0)",
    "protocol-type": "pass an instance such as Plain() or SecAgg()",
    "update-dtype": "only floating-point leaves can be averaged; cast it, or take it out of the "
    "tree (jax.tree.map, flax.nnx.split)",
    "client-axis": "stack the clients' updates along axis 0 of every leaf, one row for each "
    "client of the session",
    "mesh-clients": "every device of the client axes takes as many clients: fill the cohort with "
    "rows that never take part",
    "axis-name": 'jax.make_mesh((8,), ("clients",)) makes a mesh and jax.set_mesh(mesh) puts it '
    "in use",
    "session-clients": "make the session and the transformation for the same number of clients",
    "session-part": "clients who exchange keys and shares need the session of the whole cohort; "
    "session.rows(...) are for the blocks of a stream",
    "session-rounds": "a session is of one round: use jax.vmap or jax.lax.scan over many",
    "update-structure": "give every client's update the structure and shapes of the parameters",
    "weights-shape": "give one weight for every client, in the order of the updates",
    "weights-dtype": "weights are integers from 0 to max_weight, or fractions in [0, 1] as floats",
    "weights-range": "integers go from 0 to max_weight and floats from 0 to 1: divide larger "
    "weights by their public maximum, or raise max_weight",
    "max-weight": "plan_round(..., max_weight=w) shows what fits a round",
    "weight-budget": "raise the ring's bits, or lower max_weight, max_levels or the number of "
    "clients; plan_round(...) shows what fits",
    "blind-group-type": "the words of a blind round are shifted and tagged in a ring: take SecAgg "
    "or Plain",
    "blind-budget": "words of a blind round leave floor(log2 num_clients) low bits of the ring "
    "empty: raise the ring's bits by as many, or lower max_weight, max_levels or the number of "
    "clients; plan_round(..., blind=True) shows what fits",
    "float-budget": "float32 cannot round a larger number to the grid: lower max_levels "
    "(fewer bits) or max_weight",
    "stream-type": "pass what init(...), add_block(...) or merge(...) returned",
    "stream-clients": "every client is in one block of the round, whose rows are "
    "session.rows(first, count) or simulated_session(..., first_client=i)",
    "stream-closed": "add all blocks before close(stream): who is not in them is lost at upload",
    "stream-round": "make the rows of a block from the seed and round of the session that init "
    "was given",
    "stream-updates": "give every block updates of the structure, shapes and dtypes that init was "
    "given",
    "stream-weights": "init(..., weights='integer') or weights='fraction' says for all blocks what "
    "their weights are, None that they have none",
    "stream-merge": "merge sums of one stream, each once",
    "stream-derivative": "apply jax.lax.stop_gradient to the updates, or secure_mean to all rows "
    "at once",
    "participation-shape": "give bool[num_clients]: True where the client's upload arrived",
    "participation-dtype": "give booleans, for example jnp.arange(n) != 3",
    "participation-monotone": "who is gone stays gone: Participation.until(stage, alive) makes "
    "the rows",
    "stage": "name the stage whose message is the first that does not arrive",
    "drop-rate": "give the part of the clients that is lost, for example 0.1 for one in ten",
    "client-id": "clients are counted from 1, as in session.client_ids",
    "clip": "choose the largest norm that an update may keep, for example clip=1.0",
    "levels": "choose the number of grid steps in one clip, for example levels=2**15",
    "levels-budget": "raise max_levels to at least levels, or lower levels: coordinates beyond "
    "max_levels saturate",
    "max-levels": "a client's word must stay below 2**23 to be rounded in float32; choose for "
    "example max_levels=2**15",
    "norm": "use 'l2' to clip the norm of the whole update, 'linf' to clip each coordinate",
    "rounding": "use 'stochastic' (unbiased) or 'nearest' (half the worst-case error)",
    "plan-size": "pass a pytree of parameters or a positive number of them",
    "plan-bits": "choose the resolution of one client's word, for example bits=16",
    "plan-ring": "take fewer bits, a smaller max_weight or fewer clients",
    "plan-protocol": "plan for SecAgg and SecAgg+, or for LightSecAgg",
    "graph-clients": "a graph joins at least two clients, and an index is an int32",
    "degree": "the complete graph is degree = num_clients - 1, and an odd degree needs an even "
    "number of clients",
    "graph-order": "pass permutation(seed, num_clients), or jnp.arange(num_clients) for the "
    "complete graph",
    "graph-keys": "stack the clients' public keys, one row for each client",
    "rate": "give the fraction of clients, for example 0.1 for one in ten",
    "adversary": "a server that may show clients different survivors is semi-malicious",
    "security": "40 allows a privacy failure with a probability of 2^-40",
    "failure": "20 allows a lost round with a probability of 2^-20",
    "blind": "True plans for blind_mean, whose words leave low bits of the ring empty, False for "
    "secure_mean",
    "consistency": "True has clients attest the survivors before they answer, False trusts the "
    "server to show everybody the same",
    "graph-rates": "no threshold is above those who may collude and below those who are left: "
    "assume fewer of either",
    "num-holders": "a share point is a slot plus one, in 16 bits: take 1 to 65535 holders",
    "threshold": "so many holders of shares, in SecAgg the neighbours of a client, recover a "
    "secret: choose 1 to their number; a ring is SecAgg(group=ring)",
    "coded-rates": "too few would be left to rebuild a sum of masks of which the others learn "
    "nothing else: assume fewer of either",
    "coded-storage": "a client keeps so much of its peers' coded masks until the round is over: "
    "sum fewer coordinates, assume fewer lost or corrupt clients, or plan for SecAgg",
    "coded-group-type": "masks are coded over a field: leave the group at its default",
    "coded-clients": "a round of LightSecAgg has N^2 coded vectors: take smaller cohorts, or "
    "SecAgg with a degree",
    "privacy": "choose how many clients may collude with the server, for example N // 2",
    "target-survivors": "choose more than may collude, and at most as many clients as are sure to "
    "be left",
    "min-survivors": "no client helps to unmask the sum of fewer: choose 2 to the size of the "
    "cohort",
    "group-keys-type": "pass what agree_group_key(...) returned first",
    "group-keys-shape": "agree on a group key in a session of the same cohort",
    "group-key": "give this client's copy, group.keys[i], or jax.vmap over group.keys for all",
    "optimizer-type": "pass an optax rule such as optax.sgd(0.1)",
    "cohort-size": "name those who take part: clients=sample_clients(seed, N, n, round_id=r)",
    "blind-codec": "a sum opens with the codec of its round",
    "blinded-type": "pass what blind_mean(...) returned first",
    "refuse-own-keys": "the list of the server lacks this client's keys, has others, or has one "
    "key twice: share nothing, start a new round",
    "refuse-invalid-key": "the list of the server gives a neighbour a public key of zeros, or one "
    "whose secrets everybody knows: share nothing, start a new round without that neighbour",
    "refuse-graph": "the server named other neighbours than follow from the list of keys: share "
    "nothing, start a new round",
    "refuse-few-keys": "fewer neighbours than the threshold have advertised keys: share nothing, "
    "start a new round with more clients",
    "refuse-late-share": "the server relayed a share of a neighbour without keys: answer nothing, "
    "start a new round",
    "refuse-sealed-share": "a neighbour or the server changed a sealed share: answer nothing, "
    "start a new round",
    "refuse-few-shares": "fewer neighbours than the threshold have dealt shares: upload nothing, "
    "start a new round with more clients",
    "refuse-declared-lost": "the server names this client as lost while it is there: answer "
    "nothing, start a new round",
    "refuse-unknown-survivor": "the server names a survivor who dealt this client no share: "
    "answer nothing, start a new round",
    "refuse-few-survivors": "the server names fewer survivors than may be unmasked: answer "
    "nothing, start a new round with more clients",
    "refuse-attested-already": "the server asks for a second word on the survivors of one round: "
    "answer nothing, start a new round",
    "refuse-other-set": "the server asks to unmask other survivors than this client has attested: "
    "answer nothing, start a new round",
    "refuse-few-attestations": "fewer neighbours than the threshold attest these survivors, so "
    "the server may have named others to them: answer nothing, start a new round",
    "refuse-answered-already": "a second answer in one round can open an update: answer nothing, "
    "start a new round",
    "refuse-signature": "the list of the server has a key that its owner did not sign: share "
    "nothing, start a new round, and do not trust that server",
    "identity-seed": "secrets.token_bytes(32) makes one, and Identity.fresh() needs none",
    "identity-key": "take the identities of others from an authority, as Identity.public gave them",
    "lost-type": "say which client is lost at which stage: lost={2: 'upload'}",
    "time-limit": "give seconds; a first round has to compile in them",
    "real-session": "host.keys.real_session(session) makes one: no process can be the dealer of "
    "the ideal key agreement",
    "group-session": "agree on the group key in a simulated_session(...): its key exchange has no "
    "messages of its own yet",
    "num-chunks": "CHUNKS for each secret of 256 bits",
    "chunks-shape": "to_chunks(secret) makes CHUNKS of one secret; concatenate those of several",
    "polynomial-shape": "draw them with draw_coefficients(key, threshold, num_chunks)",
    "shares-shape": "give one row of uint32 shares for every slot, anything where none arrived",
    "present-shape": "give one boolean for every slot: True where the share arrived",
    "plan-type": "pass a plan: plan_round(...)",
    "cost-protocols": "list the protocols to compare: [Plain(), plan.protocol()]",
    "update-session": "call update(grads, state, params, session=simulated_session(...))",
    "optax-order": "give the gradients of all clients, one row each; what accumulates or averages "
    "comes after it, as in optax.chain(secure_aggregate(...), optax.MultiSteps(...)), and "
    "per-example privacy inside a client",
    "optax-privacy": "per-example clipping and noise belong inside the client, before "
    "aggregation: apply differentially_private_aggregate to each client's own gradients",
    "inner-type": "pass a rule such as optax.adam(1e-3), or the gradient_transformation() of "
    "an optax.MultiSteps",
    "aggregate-type": "pass secure_aggregate(codec, protocol, num_clients=n)",
    "placement-clients": "make the session for the clients of the program: "
    "drjax.program(clients=n), simulated_session(..., num_clients=n)",
    "beside-codecs": "give Beside a codec for each part of an update, and all the same rounding",
    "beside-update": "give the parts of an update as a tuple, one tree for each codec of Beside",
    "loss-type": "pass loss(params, batch), which gives one number for each example",
    "loss": "a loss gives one number for each example of a batch, float[B], and if it says so "
    "which are correct, bool[B]: the mean is taken over the real examples afterwards",
    "max-loss": "choose a bound on the losses that the metrics shall show, for example 16.0",
    "local-steps": "a client goes through its data at least once, in batches of at least one "
    "example",
    "client-data-type": "pass ClientData(examples, counts), or pad_clients([...])",
    "client-data": "pad the examples of all clients to one number: pad_clients([...]) does",
    "pad-clients": "give every client the same leaves, of the same shape and dtype but for the "
    "number of examples in front",
    "state-type": "pass what algorithm.init(params) or an earlier round returned",
    "clients": "name each client of the session once, as int32 counted from 0: "
    "sample_clients(seed, population, cohort)",
    "population": "give the number of all clients, of which a cohort takes part",
    "cohort": "at least two and at most all clients take part in a round",
    "num-rounds": "a run has one round at least",
    "algorithm-type": "pass an instance such as FedAvg(loss, optax.sgd(0.1), codec=codec)",
    "start": "give one model at which all clients began, or leave start and start_hashes out to "
    "average the parameters directly",
}
