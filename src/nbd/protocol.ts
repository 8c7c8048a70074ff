/**
 * Constants of the NBD protocol, named after doc/proto.md of the NetworkBlockDevice project. Everything on the wire is big-endian;
 * 64-bit magics are given as two halves.
 */

/** `NBDMAGIC` and `IHAVEOPT`, as halves. */
export const INIT_MAGIC_HIGH = 0x4e42444d;
export const INIT_MAGIC_LOW = 0x41474943;
export const OPTION_MAGIC_HIGH = 0x49484156;
export const OPTION_MAGIC_LOW = 0x454f5054;
/** Magic of replies to options: 0x3e889045565a9. */
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;

// Handshake flags of the server, and what the client answers with.
export const FIXED_NEWSTYLE = 1;
export const NO_ZEROES = 2;

// Options.
export const OPT_EXPORT_NAME = 1;
export const OPT_ABORT = 2;
export const OPT_LIST = 3;
export const OPT_STARTTLS = 5;
export const OPT_INFO = 6;
export const OPT_GO = 7;
export const OPT_STRUCTURED_REPLY = 8;
export const OPT_LIST_META_CONTEXT = 9;
export const OPT_SET_META_CONTEXT = 10;
export const OPT_EXTENDED_HEADERS = 11;

// Replies to options. Errors have the highest bit set.
export const REP_ACK = 1;
export const REP_SERVER = 2;
export const REP_INFO = 3;
export const REP_META_CONTEXT = 4;
export const REP_FLAG_ERROR = 0x80000000;
export const REP_ERR_UNSUP = 0x80000001;
export const REP_ERR_POLICY = 0x80000002;
export const REP_ERR_INVALID = 0x80000003;
export const REP_ERR_PLATFORM = 0x80000004;
export const REP_ERR_TLS_REQD = 0x80000005;
export const REP_ERR_UNKNOWN = 0x80000006;
export const REP_ERR_SHUTDOWN = 0x80000007;
export const REP_ERR_BLOCK_SIZE_REQD = 0x80000008;
export const REP_ERR_TOO_BIG = 0x80000009;
export const REP_ERR_EXT_HEADER_REQD = 0x8000000a;

// Kinds of information about an export.
export const INFO_EXPORT = 0;
export const INFO_NAME = 1;
export const INFO_DESCRIPTION = 2;
export const INFO_BLOCK_SIZE = 3;

// Transmission flags.
export const FLAG_HAS_FLAGS = 1 << 0;
export const FLAG_READ_ONLY = 1 << 1;
export const FLAG_SEND_FLUSH = 1 << 2;
export const FLAG_SEND_FUA = 1 << 3;
export const FLAG_ROTATIONAL = 1 << 4;
export const FLAG_SEND_TRIM = 1 << 5;
export const FLAG_SEND_WRITE_ZEROES = 1 << 6;
export const FLAG_SEND_DF = 1 << 7;
export const FLAG_CAN_MULTI_CONN = 1 << 8;
export const FLAG_SEND_CACHE = 1 << 10;
export const FLAG_SEND_FAST_ZERO = 1 << 11;

export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** magic, flags, type, cookie, offset, length (32 bits). */
export const REQUEST_LENGTH = 28;
/** The same with a length of 64 bits. */
export const EXTENDED_REQUEST_LENGTH = 32;
/** magic, error, cookie. */
export const SIMPLE_REPLY_LENGTH = 16;
/** magic, flags, type, cookie, length (32 bits). */
export const STRUCTURED_REPLY_LENGTH = 20;
/** magic, flags, type, cookie, offset, length (64 bits). */
export const EXTENDED_REPLY_LENGTH = 32;

// Commands.
export const CMD_READ = 0;
export const CMD_WRITE = 1;
export const CMD_DISC = 2;
export const CMD_FLUSH = 3;
export const CMD_TRIM = 4;
export const CMD_CACHE = 5;
export const CMD_WRITE_ZEROES = 6;
export const CMD_BLOCK_STATUS = 7;

// Flags of commands.
export const CMD_FLAG_FUA = 1 << 0;
export const CMD_FLAG_NO_HOLE = 1 << 1;
export const CMD_FLAG_DF = 1 << 2;
export const CMD_FLAG_REQ_ONE = 1 << 3;
export const CMD_FLAG_FAST_ZERO = 1 << 4;
export const CMD_FLAG_PAYLOAD_LEN = 1 << 5;

// Structured replies: flags and types of chunks.
export const REPLY_FLAG_DONE = 1;
export const REPLY_NONE = 0;
export const REPLY_OFFSET_DATA = 1;
export const REPLY_OFFSET_HOLE = 2;
export const REPLY_BLOCK_STATUS = 5;
export const REPLY_BLOCK_STATUS_EXT = 6;
export const REPLY_FLAG_ERROR = 1 << 15;
export const REPLY_ERROR = 0x8001;
export const REPLY_ERROR_OFFSET = 0x8002;

// What base:allocation says of an extent.
export const STATE_HOLE = 1;
export const STATE_ZERO = 2;

export const CONTEXT_ALLOCATION = 'base:allocation';
/** Which layer of a chain an extent is in, 1 the top, 0 none (QEMU's docs/interop/nbd.txt). */
export const CONTEXT_DEPTH = 'qemu:allocation-depth';
/** The bitmap's name follows; bit 0 of the flags: dirty. */
export const CONTEXT_DIRTY_BITMAP = 'qemu:dirty-bitmap:';

/** Longest string that the protocol allows, bytes. */
export const MAX_STRING = 4096;
/** Longest payload of a request or reply that peers must expect to work when nothing else was said. */
export const MAX_PAYLOAD = 32 * 1024 * 1024;

/** How replies of a connection look. */
export const SIMPLE = 0;
export const STRUCTURED = 1;
export const EXTENDED = 2;
export type ReplyMode = typeof SIMPLE | typeof STRUCTURED | typeof EXTENDED;

/** The IANA port of NBD. */
export const NBD_PORT = 10809;
