import { connect, type OnReadOpts, type Socket } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { fromSystemError, LunetteError, ProtocolError } from '../../formats/core/errors.ts';
import type { IoVec } from '../../formats/core/iov.ts';
import { abortOption, type ByteStream, type Negotiated, negotiate } from './client-handshake.ts';
import { clientTlsOptions } from './client-tls.ts';
import * as wire from './protocol.ts';
import { type Pending, ReplyReader } from './reply-reader.ts';
import type { NbdUri } from './uri.ts';

export interface ConnectOptions {
  /** From the first packet to the choice of the export, ms. */
  readonly connectTimeoutMs: number;
  /** A server that says nothing for so long while requests wait is given up, ms. */
  readonly requestTimeoutMs: number;
}

/** Bytes of a read from the socket that is not for data of one request alone. */
const SCRATCH = 64 * 1024;

/** Who gets what a socket reads without Node's streams between: with TLS it is not read like this. */
interface Intake {
  /** Where the next bytes go. */
  where: () => Uint8Array;
  /** So many of them are there. */
  took: (length: number, memory: Uint8Array) => void;
}

/** A connection of a client in transmission. */
export class ClientConnection {
  readonly negotiated: Negotiated;
  /** Why it is of no use any more. */
  lost: LunetteError | undefined;
  /** Called once, when it is lost or closed. */
  onLost: () => void = () => {};
  readonly #socket: Socket;
  readonly #pending = new Map<number, Pending>();
  readonly #reader: ReplyReader;
  readonly #timer: NodeJS.Timeout;
  readonly #scratch: Uint8Array = new Uint8Array(SCRATCH);
  /** Memory of a request that the socket reads into now. */
  #direct: Uint8Array | undefined;
  #cookie = 0;
  #heard = true;

  private constructor(released: Released, negotiated: Negotiated, requestTimeoutMs: number) {
    const { socket, rest, intake } = released;
    this.#socket = socket;
    this.negotiated = negotiated;
    this.#reader = new ReplyReader(this.#pending, negotiated.mode, negotiated.allocationId);
    socket.on('data', (bytes: Buffer) => this.#receive(bytes));
    if (intake !== undefined) {
      intake.where = () => {
        this.#direct = this.lost === undefined ? this.#reader.destination() : undefined;
        return this.#direct ?? this.#scratch;
      };
      intake.took = (length, memory) => {
        if (memory === this.#direct) this.#arrived(length);
        else this.#receive(memory.subarray(0, length));
      };
    }
    socket.on('error', (error) => this.#lose(fromSystemError(error, 'the connection failed')));
    socket.on('close', () => this.#lose(new LunetteError('DISCONNECTED', 'the server closed the connection')));
    if (rest.length > 0) this.#receive(rest);
    // Twice in that time: a server that is silent for all of it is found within one and a half.
    this.#timer = setInterval(() => this.#tick(), requestTimeoutMs / 2);
    this.#timer.unref();
  }

  /** Connects and negotiates. @throws {LunetteError} DISCONNECTED, NOT_FOUND, AUTH, TIMEOUT, PROTOCOL */
  static async open(uri: NbdUri, options: ConnectOptions): Promise<ClientConnection> {
    const stream = new SocketStream(uri);
    const timer = setTimeout(() => {
      stream.fail(new LunetteError('TIMEOUT', 'the server does not answer'));
    }, options.connectTimeoutMs);
    try {
      const negotiated = await negotiate(stream, uri.exportName, uri.tls);
      return new ClientConnection(stream.release(), negotiated, options.requestTimeoutMs);
    } catch (error) {
      stream.leave(abortOption());
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Requests that wait for their replies. */
  get inFlight(): number {
    return this.#pending.size;
  }

  /**
   * Sends a request. Memory of `iov` is in use until it settles.
   *
   * @returns pairs of length and flags for BLOCK_STATUS
   */
  request(type: number, flags: number, offset: number, length: number, iov?: IoVec): Promise<readonly number[]> {
    return new Promise((resolve, reject) => {
      if (this.lost !== undefined) {
        reject(this.lost);
        return;
      }
      const cookie = ++this.#cookie;
      if (this.#pending.size === 0) this.#heard = true;
      const descriptors: number[] = [];
      this.#pending.set(cookie, {
        type,
        offset,
        length,
        iov: type === wire.CMD_READ ? iov : undefined,
        received: 0,
        parts: undefined,
        error: undefined,
        descriptors,
        resolve: () => resolve(descriptors),
        reject: (error) => {
          // ESHUTDOWN: the protocol wants that we take leave. Whoever asked may ask the next server.
          if (error instanceof LunetteError && error.code === 'DISCONNECTED' && this.lost === undefined) {
            reject(this.#leave(error));
          } else reject(error);
        },
      });
      this.#send(type, flags, cookie, offset, length, type === wire.CMD_WRITE ? iov : undefined);
    });
  }

  /** Says goodbye. Nothing is to be in flight. */
  close(): void {
    if (this.lost === undefined) this.#leave(new LunetteError('CLOSED', 'the connection is closed'));
  }

  #leave(why: LunetteError): LunetteError {
    const socket = this.#socket;
    // What the system has not taken or brought yet is memory of those who asked, which is theirs again from now on.
    if (this.#pending.size > 0 && (socket.writableLength > 0 || this.#reader.destination() !== undefined)) {
      this.#lose(why);
      return why;
    }
    this.#send(wire.CMD_DISC, 0, 0, 0, 0, undefined);
    this.#lose(why, false);
    socket.end();
    // A server that does not close its end is not waited for.
    setTimeout(() => socket.destroy(), 1000).unref();
    return why;
  }

  #send(type: number, flags: number, cookie: number, offset: number, length: number, payload: IoVec | undefined): void {
    const extended = this.negotiated.mode === wire.EXTENDED;
    const head = Buffer.allocUnsafe(extended ? wire.EXTENDED_REQUEST_LENGTH : wire.REQUEST_LENGTH);
    head.writeUInt32BE(extended ? wire.EXTENDED_REQUEST_MAGIC : wire.REQUEST_MAGIC, 0);
    head.writeUInt16BE(flags | (extended && payload !== undefined ? wire.CMD_FLAG_PAYLOAD_LEN : 0), 4);
    head.writeUInt16BE(type, 6);
    putNumber(head, 8, cookie);
    putNumber(head, 16, offset);
    if (extended) putNumber(head, 24, length);
    else head.writeUInt32BE(length, 24);
    const socket = this.#socket;
    if (payload === undefined) {
      socket.write(head);
      return;
    }
    socket.cork();
    socket.write(head);
    for (let i = 0; i < payload.count; i++) {
      const start = payload.offsets[i] as number;
      socket.write((payload.memory[i] as Uint8Array).subarray(start, start + (payload.lengths[i] as number)));
    }
    socket.uncork();
  }

  #receive(bytes: Uint8Array): void {
    this.#take(() => this.#reader.receive(bytes));
  }

  #arrived(length: number): void {
    this.#take(() => this.#reader.arrived(length));
  }

  #take(take: () => void): void {
    if (this.lost !== undefined) return;
    this.#heard = true;
    try {
      take();
    } catch (error) {
      this.#lose(
        error instanceof LunetteError ? error : new ProtocolError('INTERNAL', String(error), { cause: error }),
      );
    }
  }

  #tick(): void {
    if (this.#pending.size > 0 && !this.#heard) {
      this.#lose(new LunetteError('TIMEOUT', 'the server does not answer'));
    }
    this.#heard = false;
  }

  #lose(why: LunetteError, destroy = true): void {
    if (this.lost !== undefined) return;
    this.lost = why;
    clearInterval(this.#timer);
    if (destroy) this.#socket.destroy();
    for (const pending of this.#pending.values()) pending.reject(why);
    this.#pending.clear();
    this.onLost();
  }
}

/** A connection after negotiation. */
interface Released {
  readonly socket: Socket;
  /** What came too much. */
  readonly rest: Buffer;
  /** Undefined: the socket has 'data' events. */
  readonly intake: Intake | undefined;
}

/** A socket as negotiation wants it. */
class SocketStream implements ByteStream {
  readonly #uri: NbdUri;
  readonly #plain: Socket;
  readonly #intake: Intake | undefined;
  #socket: Socket;
  #chunks: Buffer = Buffer.alloc(0);
  #waiting: { length: number; resolve: (bytes: Buffer) => void; reject: (error: Error) => void } | undefined;
  #error: LunetteError | undefined;
  /** TLS is up, and nothing has come through it. */
  #unheard = false;
  readonly #onData = (bytes: Buffer): void => {
    this.#unheard = false;
    this.#chunks = this.#chunks.length === 0 ? bytes : Buffer.concat([this.#chunks, bytes]);
    this.#serve();
  };
  readonly #onError = (error: Error): void => this.#lost(fromSystemError(error, 'the connection failed'));
  readonly #onClose = (): void => this.#lost(new LunetteError('DISCONNECTED', 'the server closed the connection'));

  constructor(uri: NbdUri) {
    this.#uri = uri;
    if (!uri.tls) {
      const memory = new Uint8Array(SCRATCH);
      this.#intake = { where: () => memory, took: (length) => this.#onData(Buffer.from(memory.subarray(0, length))) };
    }
    const { address } = uri;
    const onread = this.#intake === undefined ? {} : { onread: readInto(this.#intake) };
    this.#plain =
      'path' in address
        ? connect({ ...address, ...onread })
        : connect({ ...address, noDelay: true, keepAlive: true, ...onread });
    this.#socket = this.#plain;
    this.#attach(this.#plain);
  }

  read(length: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#waiting = { length, resolve, reject };
      this.#serve();
    });
  }

  write(bytes: Uint8Array): void {
    if (this.#error === undefined) this.#socket.write(bytes);
  }

  async startTls(): Promise<void> {
    if (this.#chunks.length > 0) throw new ProtocolError('PROTOCOL', 'bytes in the clear where TLS should begin');
    const options = await clientTlsOptions(this.#uri);
    const plain = this.#plain;
    this.#detach(plain);
    const secure: TLSSocket = connectTls({ ...options, socket: plain });
    let failed: (error: LunetteError) => void = () => undefined;
    const onError = (error: Error): void => failed(new LunetteError('AUTH', `TLS: ${error.message}`, { cause: error }));
    const onClose = (): void =>
      failed(new LunetteError('AUTH', 'the server closed the connection inside of the TLS handshake'));
    secure.on('error', onError).on('close', onClose);
    await new Promise<void>((resolve, reject) => {
      failed = (error) => {
        this.fail(error); // too late for words in the clear
        reject(error);
      };
      secure.once('secureConnect', () => resolve());
    });
    // Not all listeners: one of Node's own frees what TLS holds.
    secure.off('error', onError).off('close', onClose);
    this.#socket = secure;
    this.#unheard = true;
    this.#attach(secure);
  }

  #lost(error: LunetteError): void {
    // With TLS 1.3 a client is through before the server has looked at its certificate.
    const refused = 'TLS: the server ended the connection: it does not accept our certificate or key, or wants one';
    this.fail(this.#unheard ? new LunetteError('AUTH', refused, { cause: error }) : error);
  }

  fail(error: LunetteError): void {
    this.#error ??= error;
    this.#waiting?.reject(this.#error);
    this.#waiting = undefined;
    this.destroy();
  }

  /** The end before anything was agreed, with last words: a server that hears them does not take it for a loss. */
  leave(words: Uint8Array): void {
    if (this.#error !== undefined || this.#socket.destroyed) {
      this.destroy();
      return;
    }
    this.#detach(this.#socket);
    const [socket, plain] = [this.#socket, this.#plain];
    for (const each of [socket, plain]) each.on('error', () => undefined);
    socket.resume();
    socket.end(words);
    setTimeout(() => {
      socket.destroy();
      plain.destroy();
    }, 1000).unref();
  }

  destroy(): void {
    this.#socket.on('error', () => undefined);
    this.#socket.destroy();
    this.#plain.destroy();
  }

  /** Negotiation is over: the socket is the caller's, with what came too much. */
  release(): Released {
    this.#detach(this.#socket);
    return { socket: this.#socket, rest: this.#chunks, intake: this.#intake };
  }

  #serve(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    if (this.#error !== undefined) {
      this.#waiting = undefined;
      waiting.reject(this.#error);
    } else if (this.#chunks.length >= waiting.length) {
      this.#waiting = undefined;
      const bytes = this.#chunks.subarray(0, waiting.length);
      this.#chunks = this.#chunks.subarray(waiting.length);
      waiting.resolve(bytes);
    }
  }

  #attach(socket: Socket): void {
    socket.on('data', this.#onData).on('error', this.#onError).on('close', this.#onClose);
  }

  #detach(socket: Socket): void {
    socket.off('data', this.#onData).off('error', this.#onError).off('close', this.#onClose);
  }
}

/** How a socket reads into memory that is chosen anew for each read (`onread` of net.Socket). */
function readInto(intake: Intake): OnReadOpts {
  return {
    // Asked again after each read, once what was read has been understood.
    buffer: () => intake.where(),
    callback: (length, memory) => {
      intake.took(length, memory);
      return true;
    },
  };
}

function putNumber(bytes: Buffer, at: number, value: number): void {
  bytes.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  bytes.writeUInt32BE(value % 2 ** 32, at + 4);
}
