import { LunetteError, ProtocolError } from '../../formats/core/errors.ts';
import * as wire from './protocol.ts';

/** The two directions of a connection, as negotiation uses them. */
export interface ByteStream {
  /** Exactly so many bytes. @throws when the other side goes away first */
  read(length: number): Promise<Buffer>;
  write(bytes: Uint8Array): void;
  /** Goes on encrypted. */
  startTls(): Promise<void>;
}

/** What a client has agreed on with a server. */
export interface Negotiated {
  /** Bytes. */
  readonly size: number;
  /** Transmission flags. */
  readonly flags: number;
  readonly mode: wire.ReplyMode;
  /** Id of base:allocation; undefined: the server does not tell of holes. */
  readonly allocationId: number | undefined;
  /** Offsets and lengths are multiples of it. */
  readonly minBlock: number;
  /** Longest payload of a read or write. */
  readonly maxPayload: number;
}

/** Longest reply to an option that is taken. */
const MAX_REPLY = 64 * 1024;
/** Replies to one option: more than any honest server sends for what we ask. */
const MAX_REPLIES = 64;

interface Reply {
  readonly type: number;
  readonly data: Buffer;
}

/**
 * Client side of negotiation: TLS when asked for, then the best kind of replies that the server has, then the export.
 *
 * @throws {ProtocolError} PROTOCOL, NOT_FOUND without such an export, AUTH when TLS is missing, UNSUPPORTED for servers of oldstyle
 */
export async function negotiate(stream: ByteStream, exportName: string, tls: boolean): Promise<Negotiated> {
  const hello = await stream.read(18);
  if (hello.readUInt32BE(0) !== wire.INIT_MAGIC_HIGH || hello.readUInt32BE(4) !== wire.INIT_MAGIC_LOW) {
    throw new ProtocolError('PROTOCOL', 'this is no NBD server');
  }
  if (hello.readUInt32BE(8) !== wire.OPTION_MAGIC_HIGH || hello.readUInt32BE(12) !== wire.OPTION_MAGIC_LOW) {
    throw new ProtocolError('UNSUPPORTED', 'the server speaks oldstyle NBD only');
  }
  const serverFlags = hello.readUInt16BE(16);
  const flags = Buffer.alloc(4);
  flags.writeUInt32BE(serverFlags & (wire.FIXED_NEWSTYLE | wire.NO_ZEROES));
  stream.write(flags);
  if ((serverFlags & wire.FIXED_NEWSTYLE) === 0) {
    if (tls) throw new ProtocolError('AUTH', 'the server does not speak TLS');
    return chooseByName(stream, exportName, serverFlags, wire.SIMPLE, undefined);
  }
  if (tls) {
    if ((await ask(stream, wire.OPT_STARTTLS)).at(-1)?.type !== wire.REP_ACK) {
      throw new ProtocolError('AUTH', 'the server does not speak TLS');
    }
    await stream.startTls();
  }
  const mode = await agreeOnReplies(stream);
  const allocationId = mode === wire.SIMPLE ? undefined : await agreeOnContext(stream, exportName);
  return go(stream, exportName, serverFlags, mode, allocationId);
}

/** What a client says that does not go on. */
export function abortOption(): Buffer {
  return optionBytes(wire.OPT_ABORT, new Uint8Array(0));
}

/** The old way to an export, which has no errors: a server that does not have it goes away. */
async function chooseByName(
  stream: ByteStream,
  exportName: string,
  serverFlags: number,
  mode: wire.ReplyMode,
  allocationId: number | undefined,
): Promise<Negotiated> {
  stream.write(optionBytes(wire.OPT_EXPORT_NAME, Buffer.from(exportName)));
  const answer = await stream.read((serverFlags & wire.NO_ZEROES) === 0 ? 10 + 124 : 10).catch((error: unknown) => {
    if (!(error instanceof LunetteError) || error.code !== 'DISCONNECTED') throw error;
    throw new ProtocolError('NOT_FOUND', `the server has no export ${JSON.stringify(exportName)}, or hides it from us`);
  });
  const size = readSize(answer, 0);
  const flags = answer.readUInt16BE(8);
  return { size, flags, mode, allocationId, minBlock: 1, maxPayload: wire.MAX_PAYLOAD };
}

async function agreeOnReplies(stream: ByteStream): Promise<wire.ReplyMode> {
  const [extended] = await ask(stream, wire.OPT_EXTENDED_HEADERS);
  if (extended?.type === wire.REP_ACK) return wire.EXTENDED;
  if (extended?.type === wire.REP_ERR_TLS_REQD) throw new ProtocolError('AUTH', 'the server wants TLS: use nbds:');
  const [structured] = await ask(stream, wire.OPT_STRUCTURED_REPLY);
  return structured?.type === wire.REP_ACK ? wire.STRUCTURED : wire.SIMPLE;
}

async function agreeOnContext(stream: ByteStream, exportName: string): Promise<number | undefined> {
  const one = Buffer.alloc(4);
  one.writeUInt32BE(1);
  const query = Buffer.concat([counted(exportName), one, counted(wire.CONTEXT_ALLOCATION)]);
  for (const { type, data } of await ask(stream, wire.OPT_SET_META_CONTEXT, query)) {
    if (type === wire.REP_META_CONTEXT && data.length > 4 && data.toString('utf8', 4) === wire.CONTEXT_ALLOCATION) {
      return data.readUInt32BE(0);
    }
  }
  return undefined;
}

async function go(
  stream: ByteStream,
  exportName: string,
  serverFlags: number,
  mode: wire.ReplyMode,
  allocationId: number | undefined,
): Promise<Negotiated> {
  const wanted = Buffer.from([0, 1, 0, wire.INFO_BLOCK_SIZE]);
  const replies = await ask(stream, wire.OPT_GO, Buffer.concat([counted(exportName), wanted]));
  const last = replies.at(-1) as Reply;
  if (last.type === wire.REP_ERR_UNSUP) return chooseByName(stream, exportName, serverFlags, mode, allocationId);
  if (last.type !== wire.REP_ACK) throw refusal(last, exportName);
  let result: Negotiated | undefined;
  let minBlock = 1;
  let maxPayload = wire.MAX_PAYLOAD;
  for (const { type, data } of replies) {
    if (type !== wire.REP_INFO || data.length < 2) continue;
    const kind = data.readUInt16BE(0);
    if (kind === wire.INFO_EXPORT && data.length === 12) {
      result = { size: readSize(data, 2), flags: data.readUInt16BE(10), mode, allocationId, minBlock, maxPayload };
    } else if (kind === wire.INFO_BLOCK_SIZE && data.length === 14) {
      minBlock = data.readUInt32BE(2);
      maxPayload = Math.min(wire.MAX_PAYLOAD, data.readUInt32BE(10));
    }
  }
  if (result === undefined) throw new ProtocolError('PROTOCOL', 'the server does not say how large the export is');
  // A power of two of 64 KiB at most, the protocol says.
  if (minBlock < 1 || minBlock > 65536 || (minBlock & (minBlock - 1)) !== 0 || maxPayload < minBlock) {
    throw new ProtocolError('PROTOCOL', `the server wants blocks of ${minBlock} to ${maxPayload} bytes`);
  }
  return { ...result, minBlock, maxPayload: maxPayload - (maxPayload % minBlock) };
}

function refusal({ type, data }: Reply, exportName: string): ProtocolError {
  const said = data.length === 0 ? '' : `: ${data.toString('utf8', 0, 512)}`;
  const name = JSON.stringify(exportName);
  switch (type) {
    case wire.REP_ERR_UNKNOWN:
      return new ProtocolError('NOT_FOUND', `the server has no export ${name}${said}`);
    case wire.REP_ERR_TLS_REQD:
      return new ProtocolError('AUTH', 'the server wants TLS: use nbds:');
    case wire.REP_ERR_POLICY:
      return new ProtocolError('ACCESS', `the server does not give export ${name} to us${said}`);
    case wire.REP_ERR_SHUTDOWN:
      return new ProtocolError('DISCONNECTED', 'the server is about to end');
    default:
      return new ProtocolError('PROTOCOL', `the server refuses export ${name}${said}`);
  }
}

/** Sends an option and collects the replies up to the last. */
async function ask(stream: ByteStream, option: number, data: Uint8Array = new Uint8Array(0)): Promise<Reply[]> {
  stream.write(optionBytes(option, data));
  const replies: Reply[] = [];
  while (replies.length < MAX_REPLIES) {
    const reply = await stream.read(20);
    if (
      reply.readUInt32BE(0) !== wire.OPTION_REPLY_MAGIC_HIGH ||
      reply.readUInt32BE(4) !== wire.OPTION_REPLY_MAGIC_LOW ||
      reply.readUInt32BE(8) !== option
    ) {
      throw new ProtocolError('PROTOCOL', 'an answer to something that was not asked');
    }
    const type = reply.readUInt32BE(12);
    const length = reply.readUInt32BE(16);
    if (length > MAX_REPLY) throw new ProtocolError('PROTOCOL', `an answer of ${length} bytes`);
    replies.push({ type, data: await stream.read(length) });
    if (type === wire.REP_ACK || type >= wire.REP_FLAG_ERROR) return replies;
  }
  throw new ProtocolError('PROTOCOL', 'an option is answered without end');
}

function optionBytes(option: number, data: Uint8Array): Buffer {
  const head = Buffer.alloc(16);
  head.writeUInt32BE(wire.OPTION_MAGIC_HIGH, 0);
  head.writeUInt32BE(wire.OPTION_MAGIC_LOW, 4);
  head.writeUInt32BE(option, 8);
  head.writeUInt32BE(data.length, 12);
  return Buffer.concat([head, data]);
}

function counted(text: string): Buffer {
  const bytes = Buffer.from(text);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

function readSize(data: Buffer, at: number): number {
  const size = data.readUInt32BE(at) * 2 ** 32 + data.readUInt32BE(at + 4);
  if (!Number.isSafeInteger(size)) throw new ProtocolError('UNSUPPORTED', `an export of ${size} bytes`);
  return size;
}
