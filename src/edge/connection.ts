import type { Socket } from 'node:net';
import { TLSSocket, type TLSSocketOptions } from 'node:tls';
import { SocketStream, systemError } from '../io/native.ts';
import type { Batch } from '../wire/output.ts';
import { formatAddress } from './address.ts';

/** One end of a protocol, without a socket: bytes come in here, and go out by the Edge it was made with. */
export interface EdgeEndpoint {
  /** Takes bytes of the peer, [start, end) of a chunk, cut anywhere. They are not looked at after the return. */
  receive(bytes: Uint8Array, start: number, end: number): void;
  /** The first words, where this side has them. */
  greet?(): void;
  /** Goes on after a tick in which something has ended: see Edge.wake(). */
  wakeUp(): void;
  /** Closes the connection from our side. */
  close(reason: string, graceful?: boolean): void;
  /** The socket is gone. */
  gone(): void;
  /** Nothing but bytes in the clear, or nothing but TLS, comes from here on: the socket can be taken from Node. */
  readonly settled: boolean;
}

/** What a connection is asked by its endpoint. */
export interface Edge {
  write(batch: Batch): void;
  /** No more receive() until resume(). */
  pause(): void;
  resume(): void;
  /** Call wakeUp() soon, once for all that happens until then. */
  wake(): void;
  /** Close the connection: at once, or when all that was written is sent. */
  close(reason: string, graceful: boolean): void;
}

export interface ConnectionOptions<E extends EdgeEndpoint> {
  /** On the listener's clock. */
  readonly nowMs: number;
  readonly endpoint: (connection: Connection<E>) => E;
  /** Called once, when the socket is gone. */
  readonly onClosed: (connection: Connection<E>) => void;
}

/** How long a connection that we close may take to take the last bytes, ms. */
const LINGER_MS = 5000;

/**
 * One connection of a peer: moves bytes between a socket, plain or TLS, and an endpoint. A plain socket is taken over from Node by the addon,
 * where it is built, once negotiation is over: that halves what a request costs.
 */
export class Connection<E extends EdgeEndpoint> implements Edge {
  readonly endpoint: E;
  /** Address of the peer, for the log. */
  readonly peer: string;
  /** When it was accepted, on the listener's clock. */
  readonly sinceMs: number;
  /** Why it was closed; '' while it is open. */
  closeReason = '';
  readonly #plain: Socket;
  readonly #options: ConnectionOptions<E>;
  /** What the bytes go through: the plain socket, or TLS on it. */
  #socket: Socket;
  /** In place of the socket. */
  #stream: SocketStream | undefined;
  /** Batches that the stream has not taken whole, and how much of the first one it has. */
  readonly #queue: Batch[] = [];
  #written = 0;
  #adoptable = true;
  #paused = false;
  #awake = false;
  #ending = false;
  #gone = false;
  #linger: NodeJS.Timeout | undefined;
  readonly #wakeUp = (): void => {
    this.#awake = false;
    this.endpoint.wakeUp();
  };
  readonly #receive = (chunk: Buffer): void => {
    this.endpoint.receive(chunk, 0, chunk.length);
    if (this.#adoptable && this.endpoint.settled) this.#adopt();
  };

  constructor(socket: Socket, options: ConnectionOptions<E>) {
    this.#plain = socket;
    this.#socket = socket;
    this.#options = options;
    this.sinceMs = options.nowMs;
    this.peer = peerOf(socket);
    this.endpoint = options.endpoint(this);
    this.#attach(socket);
    socket.on('close', this.#onClose);
    this.endpoint.greet?.();
  }

  readonly #onClose = (): void => {
    if (this.#gone) return;
    this.#gone = true;
    clearTimeout(this.#linger);
    this.endpoint.gone();
    this.#options.onClosed(this);
  };

  write(batch: Batch): void {
    if (this.#stream !== undefined) {
      this.#queue.push(batch);
      if (this.#queue.length === 1) this.#send(this.#stream);
      return;
    }
    const socket = this.#socket;
    if (batch.count === 1) {
      socket.write(batch.piece(0), batch.taken);
      return;
    }
    socket.cork();
    const last = batch.count - 1;
    for (let i = 0; i < last; i++) socket.write(batch.piece(i));
    socket.write(batch.piece(last), batch.taken);
    socket.uncork();
  }

  pause(): void {
    this.#paused = true;
    if (this.#stream === undefined) this.#socket.pause();
    else this.#stream.watch(false, this.#queue.length > 0);
  }

  resume(): void {
    this.#paused = false;
    if (this.#stream === undefined) this.#socket.resume();
    else if (!this.#ending) this.#stream.watch(true, this.#queue.length > 0);
  }

  wake(): void {
    if (this.#awake) return;
    this.#awake = true;
    // After the promise callbacks that are due now: what completes together goes out together.
    process.nextTick(this.#wakeUp);
  }

  /** Goes on with TLS on the same socket. @param judge called when it is up: why the peer is refused, or undefined */
  startTls(options: TLSSocketOptions, judge: (secure: TLSSocket) => string | undefined, failed: () => void): void {
    this.#adoptable = false;
    this.#plain.off('data', this.#receive);
    const secure = new TLSSocket(this.#plain, options);
    let up = false;
    secure.once('secure', () => {
      const refusal = judge(secure);
      up = true;
      if (refusal === undefined) return;
      failed();
      this.close(refusal, false);
    });
    secure.on('error', () => {
      if (!up) failed();
    });
    this.#socket = secure;
    this.#attach(secure);
  }

  close(reason: string, graceful: boolean): void {
    this.closeReason ||= reason;
    if (!graceful) {
      this.destroy();
      return;
    }
    this.#ending = true;
    // A peer that does not read would keep it open for ever.
    this.#linger ??= setTimeout(() => this.destroy(), LINGER_MS).unref();
    if (this.#stream === undefined) this.#socket.destroySoon();
    else if (this.#queue.length === 0) this.#end(this.#stream);
    else this.#stream.watch(false, true);
  }

  /** Ends it whatever is left to send. */
  destroy(): void {
    this.#socket.destroy();
    this.#plain.destroy();
    if (this.#stream === undefined) return;
    this.#stream.close();
    for (const batch of this.#queue.splice(0)) batch.taken();
    process.nextTick(this.#onClose);
  }

  #attach(socket: Socket): void {
    socket.on('data', this.#receive);
    socket.on('end', () => this.endpoint.close('the peer closed the connection'));
    socket.on('error', (error) => this.#failed(error.message));
  }

  #failed(why: string): void {
    this.closeReason ||= why;
    this.endpoint.close(why);
  }

  /** Takes the connection over from Node, unless something is under way on Node's side: then after the next bytes. */
  #adopt(): void {
    if (this.#ending || this.#gone || this.#paused) return;
    const plain = this.#plain;
    const stream = SocketStream.adopt(plain, {
      data: (bytes, length) => this.endpoint.receive(bytes, 0, length),
      writable: () => this.#send(stream as SocketStream),
      end: () => this.endpoint.close('the peer closed the connection'),
      error: (errno) => this.#failed(systemError(errno, 'recv').message),
    });
    this.#adoptable = stream !== undefined || plain.writableLength > 0;
    if (stream === undefined) return;
    this.#stream = stream;
    plain.removeAllListeners();
    plain.on('error', () => undefined);
    plain.destroy();
  }

  /** Writes as much of the queue as the socket takes. */
  #send(stream: SocketStream): void {
    const queue = this.#queue;
    while (queue.length > 0) {
      const batch = queue[0] as Batch;
      const offered = this.#offer(stream, batch);
      const done = stream.tryWrite();
      if (done < 0) {
        this.#failed(systemError(done, 'writev').message);
        this.destroy();
        return;
      }
      this.#written += done;
      if (this.#written === batch.bytes) {
        this.#written = 0;
        queue.shift();
        // Not now: whoever has queued it is not done yet.
        process.nextTick(batch.taken);
      } else if (done < offered) {
        stream.watch(!this.#paused && !this.#ending, true);
        return;
      }
    }
    stream.watch(!this.#paused && !this.#ending, false);
    if (this.#ending) this.#end(stream);
  }

  /** Adds what is left of a batch to the next write, as far as it fits. @returns bytes */
  #offer(stream: SocketStream, batch: Batch): number {
    let skip = this.#written;
    let offered = 0;
    for (let i = 0; i < batch.count; i++) {
      const start = batch.starts[i] as number;
      const end = batch.ends[i] as number;
      if (skip >= end - start) {
        skip -= end - start;
        continue;
      }
      if (!stream.add((batch.chunks[i] as { memory: Uint8Array }).memory, start + skip, end)) break;
      offered += end - start - skip;
      skip = 0;
    }
    return offered;
  }

  /** All is written: the peer sees the end, then the connection goes. */
  #end(stream: SocketStream): void {
    stream.shutdown();
    this.destroy();
  }
}

function peerOf({ remoteAddress, remotePort }: Socket): string {
  if (remoteAddress === undefined) return 'a local program';
  return formatAddress(remoteAddress, remotePort ?? 0);
}
