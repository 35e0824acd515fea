"""Every bound of the protocol, with its unit and its reason.

A message that exceeds a bound is refused before anything is allocated for it.
"""

from __future__ import annotations

# --- Wire -------------------------------------------------------------------------------------

GOSSIP_BYTES_MAX = 64 * 1024
"""One gossip message. Everybody carries it, so it stays small."""

FRAME_BYTES_MAX = 1024 * 1024
"""One frame on a direct stream between two peers."""

ENVELOPE_BYTES_MAX = FRAME_BYTES_MAX - 64
"""One signed message; leaves room for the frame around it."""

NETWORK_NAME_BYTES_MAX = 64
KIND_BYTES_MAX = 32
TEXT_BYTES_MAX = 256
"""Human-readable details inside messages."""

NAME_BYTES_MAX = 64
"""Names of workloads, devices and profiles."""

INTEGER_MAX = 2**63 - 1

# --- Time -------------------------------------------------------------------------------------

CLOCK_SKEW_MS = 30_000
"""How far a peer's clock may be from ours before its timestamps count as wrong."""

OFFER_LIFETIME_MS_MAX = 24 * 3_600_000
ADVERT_LIFETIME_MS_MAX = 15 * 60_000
"""An advert that isn't renewed vanishes: a claim is about now."""

# --- Job --------------------------------------------------------------------------------------

INPUT_BYTES_MAX = 256 * 1024
"""A job's input as the executor gets it."""

FRAUD_INPUT_BYTES_MAX = 24 * 1024
"""Input carried inside a gossiped fraud proof."""

FRAUD_UNITS_MAX = 4_096
UNITS_MAX = 65_536
"""Output units of one job."""

OUTPUT_UNITS_PER_MESSAGE_MAX = 4_096
UNIT_VALUE_MAX = 2**32 - 1

LM_CHUNK_UNITS = 32
"""Output tokens of one committed chunk."""

CHUNKS_PER_SEGMENT = 4
"""Chunks of one signed commitment: 128 tokens, paid as one."""

SEGMENT_CHUNKS_MAX = 4_096
FINGERPRINT_BYTES_MAX = 2_048
"""Values of one chunk that an opening or a reveal carries, in the native profile."""

PARTS_MAX = 64
"""Jobs that one job may be split into. Its client alone knows that they belong together."""

PART_JOBS_MAX = 256
"""Jobs that may be offered for the parts of one: parts may fail, and late ones are offered twice."""

WHOLE_UNITS_MAX = 2**20
"""Output units of all parts together: the client's node holds them at once."""

ATTEMPTS_MAX = 16
PRICE_MICROS_MAX = 10**12

# --- Bids -------------------------------------------------------------------------------------

BIDS_PER_JOB_MAX = 256
"""Bids a requester holds; the rest are told that the book is full."""

DECLINES_PER_JOB_MAX = 1_024

# --- Verification -----------------------------------------------------------------------------

ELECTORATE_MEMBERS_MAX = 4_096
MEMBER_WEIGHT_MAX = 2**32 - 1
TOTAL_WEIGHT_MAX = 2**48
WIDENING_MAX = 2
"""k, 2k, 4k expected verifiers."""

VERIFIERS_PER_SEGMENT_MAX = 64
MERKLE_DEPTH_MAX = 32
PARAMETERS_MAX = 2**20
"""Tensors of a model."""

PARAMETER_NAME_BYTES_MAX = 256
MODEL_FILES_MAX = 8
"""Small files, e.g. a configuration and a tokenizer, that a model's digest names beside its tensors."""

# --- Disputes ---------------------------------------------------------------------------------

TRACE_VALUES_MAX = 2**18
"""Values of one chunk's program: inputs and operators."""

OPERATOR_INPUTS_MAX = 4_096
"""Inputs of one operator; only digests and concatenations have more than four."""

OPERATOR_BYTES_MAX = 16 * 1024 * 1024
"""All inputs of one operator, opened. A larger operator can't be disputed, only its chunk recomputed."""

CASE_CONTEXT_BYTES_MAX = 512 * 1024
"""What a workload adds to a case: the model's configuration and the proof of one parameter."""

EVIDENCE_BYTES_MAX = 24 * 1024 * 1024
"""One operator's fraud proof: its inputs, their paths, the job's input and output, the signed statements."""

EVIDENCE_PART_BYTES_MAX = 512 * 1024
"""One part of a fraud proof on a link; fits a frame with room for what else the link carries."""

EVIDENCE_PARTS_MAX = EVIDENCE_BYTES_MAX // EVIDENCE_PART_BYTES_MAX

EVIDENCE_KEPT_BYTES_MAX = 96 * 1024 * 1024
"""Fraud proofs kept in memory to be served; the oldest go first."""

EVIDENCE_FETCHES_MAX = 4
"""Fraud proofs fetched at once: so much memory a stranger's word may claim."""

EVIDENCE_SERVED_BYTES_MAX = 2 * EVIDENCE_BYTES_MAX
"""Served to one peer in `EVIDENCE_SERVED_MS`: a request is small, an answer isn't."""

EVIDENCE_SERVED_MS = 60_000

DISPUTES_PER_SEGMENT_MAX = 4
"""Disputes about one commitment: each costs both parties a trace of its chunk."""

DISPUTES_MAX = 64
"""Disputes that a peer takes part in at once, in any role."""

TRACE_PATIENCE = 4
"""A trace may take this many times the contract's answering time: it hashes every value."""

DISPUTE_ANSWERS_MAX = 32
"""A dispute is over after this many answering times, whatever its parties do."""

# --- What a peer remembers --------------------------------------------------------------------

REGISTRY_PEERS_MAX = 10_000
"""Peers of whom anything is remembered, such as how they stand with us."""

REGISTRY_SAMPLE_MAX = 320
"""Peers that we know of those that don't concern us. More than the largest network that isn't split."""

REGISTRY_MEMBERS_MAX = 512
"""Members that we know for each room that we are in: twice what a room has before it splits."""

REGISTRY_MET_MAX = 512
"""Peers that we know because we asked for them, or because they are linked to us."""

ROOM_DEPTH_MAX = 16
ROOM_MEMBERS_TOLD_MAX = 64
"""Adverts in one answer about a room's members."""

ROOM_MEMBERS_TOLD_BYTES_MAX = 256 * 1024
SEEN_MESSAGES_MAX = 65_536
OUTBOX_MESSAGES_MAX = 4_096
OPEN_JOBS_MAX = 4_096
DUTIES_MAX = 256
"""Verifications a peer takes part in at once."""

RECENT_GOSSIP_MAX = 2_048
RECENT_GOSSIP_MS = 120_000
"""How long gossip is kept for peers that missed it."""

SYNC_IDS_MAX = 1_024
ADDRESSES_PER_PEER_MAX = 8
OFFERINGS_PER_PEER_MAX = 64
SHARED_MODELS_PER_PEER_MAX = 32
MANIFEST_BYTES_MAX = 64 * 1024
"""The list of a model's files."""
ACCELERATORS_PER_PEER_MAX = 64

# --- Network adapter --------------------------------------------------------------------------

ADDRESS_BYTES_MAX = 256
PEER_EXCHANGE_ADDRESSES_MAX = 32
ADDRESSES_KNOWN_MAX = 1_024
"""Addresses a peer keeps as candidates for dialling."""

LINK_QUEUE_FRAMES_MAX = 1_024
LINK_QUEUE_BYTES_MAX = 16 * 1024 * 1024
"""Outbound frames that wait for one peer; beyond it, sending says no."""

EVENTS_MAX = 4_096
"""Network events that wait for the runtime."""

GOSSIP_MESSAGES_PER_SECOND_MAX = 256
GOSSIP_MESSAGES_BURST_MAX = 2_048
"""Gossip one peer may hand us, duplicates included: an honest mesh peer stays far below."""

GRAYLIST_POINTS = 100
GRAYLIST_MS = 10 * 60_000
STANDING_HALF_LIFE_MS = 5 * 60_000
STANDINGS_MAX = 16_384

CONNECTIONS_MAX = 256
CONNECTIONS_OUTBOUND_RESERVED = 64
CONNECTIONS_PER_PEER_MAX = 3
HALF_OPEN_PER_ADDRESS_MAX = 16
HALF_OPEN_MAX = 64
"""Inbound connections whose handshake isn't done."""

CONNECTIONS_PER_RANGE_MAX = 48
"""Open inbound connections of one address range (/24 or /48): a quarter of all. Keys are free."""

RANGE_CONNECTIONS_PER_SECOND = 4
RANGE_CONNECTIONS_BURST = 64
"""Connections that one range may open: each costs us a handshake of some milliseconds."""

RANGE_FAULTS_MAX = 8
"""Peers of one range that are refused for their faults, within minutes, until the range is."""

RANGES_MAX = 4_096
"""Address ranges that are remembered."""

RANGE_GOSSIP_PER_SECOND = 1_024
RANGE_GOSSIP_BURST = 8_192
"""Gossip that all peers of one range may hand us together."""

FRAMES_PER_SECOND_MAX = 512
FRAMES_BURST_MAX = 4_096
"""Frames of one peer that we read; the rest waits on its side."""

RANGE_FRAMES_PER_SECOND = 1_024
RANGE_FRAMES_BURST = 8_192
"""The same, of all peers of one range together."""

STREAMS_PER_CONNECTION_MAX = 32

# --- Receipt ----------------------------------------------------------------------------------

RECEIPT_BYTES_MAX = 64 * 1024 * 1024
"""A whole job's evidence, read from a file. It is never sent to a peer."""

# --- Against floods ---------------------------------------------------------------------------

BID_WINDOW_MS_MAX = 10 * 60_000
"""How long bids may be collected."""

RESERVATION_MS_MAX = 60_000
"""A bid holds a slot for a stranger; for longer than this nobody gets one."""

AGREED_SEGMENT_CHUNKS_MAX = 256
"""Chunks of a segment that an executor agrees to: all of them, opened, fit in one message."""

ADVERT_BYTES_MAX = 16 * 1024
"""Every peer keeps every peer's advert."""

RECENT_GOSSIP_BYTES_MAX = 16 * 1024 * 1024
"""All gossip kept for peers that missed it."""

SYNC_BYTES_MAX = 1024 * 1024
"""Missed gossip served on one request."""

OUTBOX_MESSAGES_PER_PEER_MAX = 1_024
"""Messages that wait for one peer: a silent one can't fill the outbox alone."""

EARLY_COMMITMENTS_MAX = 256
"""Commitments not heard yet whose draw claims are kept."""

COMMITMENTS_WATCHED_MAX = 2_048
"""Commitments remembered, so that a second one for the same segment is noticed."""

LANES_MAX = 1_024
"""Contracts under which a peer may still be paid, beside those that it is executing."""

CREDIT_ACCOUNTS_MAX = 4_096
"""Requesters whose debts are remembered."""

PACES_MAX = 4_096
"""Observed speeds of peers, one for each kind of work."""

# --- Blobs --------------------------------------------------------------------------------------

BLOB_PIECE_BYTES = 1024 * 1024
"""What is checked and sent as one."""

BLOB_BYTES_MAX = 64 * 1024**3
"""One blob: its index is 2 MiB."""

BLOB_MESSAGE_BYTES_MAX = 66 * 1024
"""One message on a transfer's stream: the largest says of each piece whether it is there."""

BLOB_ASKS_MAX = 4
"""Pieces on their way on one stream: as much as its window lets through in a round trip. What is asked for is
read at once, so it also bounds a fetch's memory."""

BLOB_SOURCES_MAX = 4
"""Peers that one fetch draws from at a time."""

BLOB_FETCHES_MAX = 4
"""Fetches at a time. With four pieces more of each stream that wait to be written, all hold 128 MiB."""

BLOB_STREAMS_PER_PEER_MAX = 4
BLOB_STREAMS_MAX = 32
"""Transfers served at a time."""

BLOB_STREAMS_PER_RANGE_MAX = 16
"""Of them for the peers of one address range: keys are free."""

BLOB_PIECES_SERVED_MAX = 16
"""Pieces in memory for all transfers that are served together."""

BLOBS_PER_JOB_MAX = 64
"""Blobs that one job's input may name."""

RUN_BLOBS_MAX = 4_096
RUN_BLOB_BYTES_MAX = 16 * 1024**3
"""Blobs that one run may leave, all together."""

# --- Directory ----------------------------------------------------------------------------------

BUCKET_PEERS = 20
"""Peers of one bucket, and of those closest to a key that hold its records: k of the Kademlia paper."""

BUCKET_WAITING_MAX = 8
"""Peers that would take the place of one that is gone."""

BUCKET_PEERS_PER_RANGE_MAX = 4
"""Of one address range in one bucket, and in what one path of a lookup asks: keys are free."""

TABLE_PEERS_PER_RANGE_MAX = 32

LOOKUP_PATHS = 3
"""Ways of one lookup that share no peer, each with one question on its way: alpha of the paper."""

LOOKUP_QUESTIONS_MAX = 120
"""Of one lookup, whatever it is told."""

LOOKUPS_WAITING_MAX = 256
PROVIDER_RECORD_BYTES_MAX = 4_096
PROVIDER_RECORD_LIFETIME_MS_MAX = 2 * 3_600_000
"""A record that isn't renewed vanishes, with the peers that held it or without them."""

RECORDS_PER_ANSWER_MAX = 32
RECORDS_PER_KEY_MAX = 64
RECORDS_PER_RANGE_MAX = 8
"""Records of one key whose providers are of one address range."""

RECORDS_PER_PROVIDER_MAX = 256
"""Records of one provider that one peer keeps."""

RECORDS_MAX = 16_384
RECORDS_BYTES_MAX = 8 * 1024 * 1024
OWN_RECORDS_MAX = 128
"""Keys under which one peer can be found."""

QUESTIONS_PER_PEER_MAX = 128
"""Questions of one peer that are answered in 10 s: a question is small, an answer isn't."""
