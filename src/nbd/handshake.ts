import { LunetteError, ProtocolError } from '../../formats/core/errors.ts';
import type { NbdCounters } from './counters.ts';
import { type ExportCatalog, type NbdExport, preferredBlockSize, transmissionFlags } from './export.ts';
import type { NbdLimits } from './limits.ts';
import { contextName, matchContexts, parseMetaContextQuery } from './meta-context.ts';
import * as wire from './protocol.ts';

/** Whether a server speaks TLS: not at all, to those who ask for it, or to nobody else. */
export type TlsPolicy = 'none' | 'optional' | 'required';

/** What the handshake needs of its surroundings. */
export interface HandshakeHost {
  readonly catalog: ExportCatalog;
  readonly limits: NbdLimits;
  readonly counters: NbdCounters;
  readonly tls: TlsPolicy;
  /** No new exports are given out any more. */
  readonly closing: boolean;
  /** A connection has asked about an export and does not choose it, or has gone. */
  left(found: NbdExport): void;
}

/** What was agreed. */
export interface Agreement {
  readonly export: NbdExport;
  readonly mode: wire.ReplyMode;
  /** Ids of meta contexts that BLOCK_STATUS answers. */
  readonly contexts: readonly number[];
  /** Bytes, as the client was told. */
  readonly size: number;
}

/** What the handshake asks of the connection. */
export interface HandshakeEdge {
  send(bytes: Uint8Array): void;
  /** The answer is on its way; what comes next is TLS. */
  startTls(): void;
  /** Negotiation has ended well. */
  agreed(agreement: Agreement): void;
  /** The end; graceful: after what was sent. */
  close(reason: string, graceful: boolean): void;
  /** An answer took time; bytes that came meanwhile may be given now. */
  ready(): void;
  fail(error: unknown): void;
}

/** Length of what the server says first. */
const HELLO_LENGTH = 18;
const OPTION_HEADER_LENGTH = 16;
const EXPORT_NAME_ZEROES = 124;

/** The first bytes of a server. */
export function serverHello(): Buffer {
  const bytes = Buffer.alloc(HELLO_LENGTH);
  bytes.writeUInt32BE(wire.INIT_MAGIC_HIGH, 0);
  bytes.writeUInt32BE(wire.INIT_MAGIC_LOW, 4);
  bytes.writeUInt32BE(wire.OPTION_MAGIC_HIGH, 8);
  bytes.writeUInt32BE(wire.OPTION_MAGIC_LOW, 12);
  bytes.writeUInt16BE(wire.FIXED_NEWSTYLE | wire.NO_ZEROES, 16);
  return bytes;
}

/**
 * Server side of fixed newstyle negotiation. Does no I/O: bytes come in, answers go to the edge. Options are answered one after the
 * other; while one waits for an image to be opened, no more bytes are taken.
 */
export class ServerHandshake {
  /** An answer is under way: give no bytes until the edge's ready(). */
  waiting = false;
  /** Exports that the client has asked about, any of which it may choose; the one that it has chosen. */
  readonly looked: Set<NbdExport> = new Set();
  readonly #host: HandshakeHost;
  readonly #edge: HandshakeEdge;
  #state: 'flags' | 'options' | 'done' = 'flags';
  #input: Buffer = Buffer.alloc(0);
  #options = 0;
  #fixed = false;
  #noZeroes = false;
  #encrypted = false;
  #closed = false;
  #mode: wire.ReplyMode = wire.SIMPLE;
  #contexts: { exportName: string; ids: readonly number[] } | undefined;

  constructor(host: HandshakeHost, edge: HandshakeEdge) {
    this.#host = host;
    this.#edge = edge;
  }

  /** Something has come of which the end is missing. */
  get partial(): boolean {
    return this.#input.length > 0;
  }

  /**
   * Takes bytes of the client, cut anywhere, up to the end of an option.
   *
   * @returns how many were taken
   * @throws {ProtocolError} after which the connection is to be closed
   */
  receive(bytes: Uint8Array, start: number, end: number): number {
    const need = this.#need() - this.#input.length;
    const take = Math.min(need, end - start);
    this.#input = Buffer.concat([this.#input, bytes.subarray(start, start + take)]);
    if (take === need && this.#need() === this.#input.length) this.#message();
    return take;
  }

  /** The connection has ended: exports are kept open for it no longer. */
  close(): void {
    this.#closed = true;
    this.#leaveAllBut(undefined);
  }

  #leaveAllBut(chosen: NbdExport | undefined): void {
    for (const found of this.looked) {
      if (found === chosen) continue;
      this.looked.delete(found);
      this.#host.left(found);
    }
  }

  /** TLS is up: whatever was agreed in the clear is void. */
  encrypted(): void {
    this.#encrypted = true;
    this.#mode = wire.SIMPLE;
    this.#contexts = undefined;
  }

  /** Length of the message that comes in, as far as that is known. */
  #need(): number {
    if (this.#state === 'flags') return 4;
    const input = this.#input;
    if (input.length < OPTION_HEADER_LENGTH) return OPTION_HEADER_LENGTH;
    if (input.readUInt32BE(0) !== wire.OPTION_MAGIC_HIGH || input.readUInt32BE(4) !== wire.OPTION_MAGIC_LOW) {
      throw new ProtocolError('PROTOCOL', 'an option without its magic');
    }
    const length = input.readUInt32BE(12);
    // Bounded before it is waited for. No option of a sane client is as long.
    if (length > this.#host.limits.maxOptionLength) throw new ProtocolError('LIMIT', `an option of ${length} bytes`);
    return OPTION_HEADER_LENGTH + length;
  }

  #message(): void {
    const input = this.#input;
    this.#input = Buffer.alloc(0);
    if (this.#state === 'flags') {
      const flags = input.readUInt32BE(0);
      if ((flags & ~(wire.FIXED_NEWSTYLE | wire.NO_ZEROES)) !== 0) {
        throw new ProtocolError('PROTOCOL', `unknown client flags 0x${flags.toString(16)}`);
      }
      this.#fixed = (flags & wire.FIXED_NEWSTYLE) !== 0;
      this.#noZeroes = (flags & wire.NO_ZEROES) !== 0;
      this.#state = 'options';
      return;
    }
    if (++this.#options > this.#host.limits.maxOptions) throw new ProtocolError('LIMIT', 'too many options');
    this.#option(input.readUInt32BE(8), input.subarray(OPTION_HEADER_LENGTH));
  }

  #option(option: number, data: Buffer): void {
    if (option === wire.OPT_ABORT) {
      this.#reply(option, wire.REP_ACK);
      this.#state = 'done';
      this.#edge.close('the client has ended the negotiation', true);
      return;
    }
    if (this.#host.tls === 'required' && !this.#encrypted && option !== wire.OPT_STARTTLS) {
      if (option === wire.OPT_EXPORT_NAME) throw new ProtocolError('AUTH', 'a client without TLS');
      this.#refuse(option, wire.REP_ERR_TLS_REQD, 'this server speaks TLS only: STARTTLS comes first');
      return;
    }
    if (this.#host.closing && option !== wire.OPT_EXPORT_NAME) {
      this.#refuse(option, wire.REP_ERR_SHUTDOWN, 'the server is about to end');
      return;
    }
    switch (option) {
      case wire.OPT_EXPORT_NAME:
        this.#withExport(option, data.toString('utf8'), (found, asked) => this.#exportName(found, asked));
        return;
      case wire.OPT_LIST:
        if (!this.#empty(option, data)) return;
        this.#list();
        return;
      case wire.OPT_STARTTLS:
        this.#startTls(data);
        return;
      case wire.OPT_INFO:
      case wire.OPT_GO:
        this.#infoOrGo(option, data);
        return;
      case wire.OPT_STRUCTURED_REPLY:
        if (!this.#empty(option, data)) return;
        if (this.#mode === wire.EXTENDED)
          this.#refuse(option, wire.REP_ERR_EXT_HEADER_REQD, 'extended headers are in use');
        else this.#switchMode(option, wire.STRUCTURED);
        return;
      case wire.OPT_EXTENDED_HEADERS:
        if (this.#empty(option, data)) this.#switchMode(option, wire.EXTENDED);
        return;
      case wire.OPT_LIST_META_CONTEXT:
      case wire.OPT_SET_META_CONTEXT:
        this.#metaContext(option, data);
        return;
      default:
        this.#refuse(option, wire.REP_ERR_UNSUP, `option ${option} is not known here`);
    }
  }

  #switchMode(option: number, mode: wire.ReplyMode): void {
    if (this.#mode === mode) {
      this.#refuse(option, wire.REP_ERR_INVALID, 'this was agreed already');
      return;
    }
    this.#mode = mode;
    this.#reply(option, wire.REP_ACK);
  }

  #startTls(data: Buffer): void {
    const option = wire.OPT_STARTTLS;
    if (!this.#empty(option, data)) return;
    if (this.#host.tls === 'none') {
      this.#refuse(option, wire.REP_ERR_POLICY, 'TLS is not set up here');
    } else if (!this.#fixed) {
      this.#refuse(option, wire.REP_ERR_POLICY, 'TLS is for clients that say they speak fixed newstyle');
    } else if (this.#encrypted) {
      this.#refuse(option, wire.REP_ERR_INVALID, 'TLS is in use already');
    } else {
      this.#reply(option, wire.REP_ACK);
      this.#edge.startTls();
    }
  }

  #infoOrGo(option: number, data: Buffer): void {
    const nameLength = data.length >= 6 ? data.readUInt32BE(0) : Number.POSITIVE_INFINITY;
    const countAt = 4 + nameLength;
    if (
      nameLength > wire.MAX_STRING ||
      countAt + 2 > data.length ||
      countAt + 2 + 2 * data.readUInt16BE(countAt) !== data.length
    ) {
      this.#refuse(option, wire.REP_ERR_INVALID, 'lengths inside the option do not add up');
      return;
    }
    const wanted = new Set<number>();
    for (let at = countAt + 2; at < data.length; at += 2) wanted.add(data.readUInt16BE(at));
    this.#withExport(option, data.toString('utf8', 4, countAt), (found, asked) => {
      const agreement = this.#agreement(found, asked);
      for (const info of this.#infos(agreement, wanted)) this.#reply(option, wire.REP_INFO, info);
      this.#reply(option, wire.REP_ACK);
      if (option === wire.OPT_GO) this.#finish(agreement);
    });
  }

  *#infos({ export: found, size, mode }: Agreement, wanted: ReadonlySet<number>): Iterable<Buffer> {
    const fixed = Buffer.alloc(12);
    fixed.writeUInt16BE(wire.INFO_EXPORT, 0);
    writeSize(fixed, 2, size);
    fixed.writeUInt16BE(transmissionFlags(found, mode), 10);
    yield fixed;
    if (wanted.has(wire.INFO_NAME)) yield infoText(wire.INFO_NAME, found.name);
    if (wanted.has(wire.INFO_DESCRIPTION) && found.description !== '') {
      yield infoText(wire.INFO_DESCRIPTION, found.description);
    }
    const { maxPayload } = this.#host.limits;
    const block = Buffer.alloc(14);
    block.writeUInt16BE(wire.INFO_BLOCK_SIZE, 0);
    block.writeUInt32BE(1, 2);
    block.writeUInt32BE(preferredBlockSize(found, maxPayload), 6);
    block.writeUInt32BE(maxPayload, 10);
    yield block;
  }

  #metaContext(option: number, data: Buffer): void {
    const setting = option === wire.OPT_SET_META_CONTEXT;
    if (setting) this.#contexts = undefined;
    if (setting && this.#mode === wire.SIMPLE) {
      this.#refuse(option, wire.REP_ERR_INVALID, 'structured replies come first');
      return;
    }
    let query: ReturnType<typeof parseMetaContextQuery>;
    try {
      query = parseMetaContextQuery(data);
    } catch (error) {
      this.#refuse(option, wire.REP_ERR_INVALID, (error as Error).message);
      return;
    }
    this.#withExport(option, query.exportName, (found) => {
      const ids = matchContexts(found, query.queries, !setting);
      if (setting) this.#contexts = { exportName: query.exportName, ids };
      // Ids mean nothing in a list.
      for (const id of ids)
        this.#reply(option, wire.REP_META_CONTEXT, context(setting ? id : 0, contextName(found, id)));
      this.#reply(option, wire.REP_ACK);
    });
  }

  #exportName(found: NbdExport, asked: string): void {
    const agreement = this.#agreement(found, asked);
    const bytes = Buffer.alloc(10 + (this.#noZeroes ? 0 : EXPORT_NAME_ZEROES));
    writeSize(bytes, 0, agreement.size);
    bytes.writeUInt16BE(transmissionFlags(found, agreement.mode), 8);
    this.#edge.send(bytes);
    this.#finish(agreement);
  }

  /** @param asked the name as the client gave it: contexts hold for that name only */
  #agreement(found: NbdExport, asked: string): Agreement {
    const ids = this.#contexts?.exportName === asked ? this.#contexts.ids : [];
    return { export: found, mode: this.#mode, contexts: ids, size: found.image.size };
  }

  #finish(agreement: Agreement): void {
    this.#state = 'done';
    this.#leaveAllBut(agreement.export);
    this.#edge.agreed(agreement);
  }

  /** Goes on with an export, now or when it is open; answers by itself when there is none. */
  #withExport(option: number, name: string, use: (found: NbdExport, asked: string) => void): void {
    const found = this.#host.catalog.find(name);
    if (!(found instanceof Promise)) {
      this.#useExport(option, name, found, use);
      return;
    }
    this.#wait(
      found.then(
        (opened) => this.#useExport(option, name, opened, use),
        (error: unknown) => {
          const why = error instanceof LunetteError ? error.message : 'it cannot be opened';
          this.#noExport(option, `export ${JSON.stringify(name)}: ${why}`);
        },
      ),
    );
  }

  /** Takes no bytes until an answer is given. */
  #wait(answer: Promise<void>): void {
    this.waiting = true;
    void answer.then(
      () => {
        this.waiting = false;
        this.#edge.ready();
      },
      (error: unknown) => this.#edge.fail(error),
    );
  }

  #list(): void {
    const option = wire.OPT_LIST;
    const answer = (exports: readonly { name: string; description: string }[]): void => {
      for (const { name, description } of exports) this.#reply(option, wire.REP_SERVER, server(name, description));
      this.#reply(option, wire.REP_ACK);
    };
    const exports = this.#host.catalog.list();
    if (exports instanceof Promise) this.#wait(exports.then(answer));
    else answer(exports);
  }

  #useExport(
    option: number,
    name: string,
    found: NbdExport | undefined,
    use: (found: NbdExport, asked: string) => void,
  ): void {
    if (found === undefined) {
      this.#noExport(option, `there is no export ${JSON.stringify(name)}`);
    } else if (this.#closed) {
      this.#host.left(found); // opened for somebody who did not wait for it
    } else {
      this.looked.add(found);
      use(found, name);
    }
  }

  #noExport(option: number, why: string): void {
    // EXPORT_NAME has no way to say no.
    if (option === wire.OPT_EXPORT_NAME) throw new ProtocolError('NOT_FOUND', why);
    this.#refuse(option, wire.REP_ERR_UNKNOWN, why);
  }

  /** Options without data. */
  #empty(option: number, data: Buffer): boolean {
    if (data.length === 0) return true;
    this.#refuse(option, wire.REP_ERR_INVALID, 'this option has no data');
    return false;
  }

  #refuse(option: number, error: number, why: string): void {
    this.#host.counters.optionErrors++;
    // Cut by characters, each of four bytes at most: half a character would be no UTF-8.
    this.#reply(option, error, Buffer.from([...why].slice(0, wire.MAX_STRING / 4).join('')));
  }

  #reply(option: number, type: number, data: Uint8Array = EMPTY): void {
    const head = Buffer.alloc(20);
    head.writeUInt32BE(wire.OPTION_REPLY_MAGIC_HIGH, 0);
    head.writeUInt32BE(wire.OPTION_REPLY_MAGIC_LOW, 4);
    head.writeUInt32BE(option, 8);
    head.writeUInt32BE(type, 12);
    head.writeUInt32BE(data.length, 16);
    this.#edge.send(head);
    if (data.length > 0) this.#edge.send(data);
  }
}

const EMPTY = Buffer.alloc(0);

function server(name: string, description: string): Buffer {
  const bytes = Buffer.from(name);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes, Buffer.from(description)]);
}

function context(id: number, name: string): Buffer {
  const bytes = Buffer.alloc(4 + Buffer.byteLength(name));
  bytes.writeUInt32BE(id, 0);
  bytes.write(name, 4);
  return bytes;
}

function infoText(kind: number, text: string): Buffer {
  const bytes = Buffer.alloc(2 + Buffer.byteLength(text));
  bytes.writeUInt16BE(kind, 0);
  bytes.write(text, 2);
  return bytes;
}

function writeSize(bytes: Buffer, at: number, size: number): void {
  bytes.writeUInt32BE(Math.floor(size / 2 ** 32), at);
  bytes.writeUInt32BE(size % 2 ** 32, at + 4);
}
