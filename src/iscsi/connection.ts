import type { Socket } from 'node:net';
import type { Batch } from '../wire/output.ts';
import { type Edge, Endpoint, type EndpointHost } from './endpoint.ts';
import { formatAddress } from './names.ts';

/** How long a connection that we close may take to take the last bytes, ms. */
const LINGER_MS = 5000;

/** One TCP connection: moves bytes between a socket and an endpoint. */
export class Connection implements Edge {
  readonly endpoint: Endpoint;
  /** `address:port` of the peer, for the log. */
  readonly peer: string;
  /** When it was accepted, on the portal's clock. */
  readonly sinceMs: number;
  /** Why it was closed; '' while it is open. */
  closeReason = '';
  readonly #socket: Socket;
  #awake = false;
  #linger: NodeJS.Timeout | undefined;
  readonly #flush = (): void => {
    this.#awake = false;
    this.endpoint.flush();
  };

  /** @param onClosed called once, when the socket is gone */
  constructor(socket: Socket, host: EndpointHost, nowMs: number, onClosed: (connection: Connection) => void) {
    this.#socket = socket;
    this.sinceMs = nowMs;
    this.peer = formatAddress(socket.remoteAddress ?? '?', socket.remotePort ?? 0);
    this.endpoint = new Endpoint(host, this, formatAddress(socket.localAddress ?? '?', socket.localPort ?? 0));
    socket.on('data', (chunk: Buffer) => this.endpoint.receive(chunk));
    socket.on('end', () => this.endpoint.close('the initiator closed the connection'));
    socket.on('error', (error) => {
      this.closeReason ||= error.message;
    });
    socket.on('close', () => {
      clearTimeout(this.#linger);
      this.endpoint.closed();
      onClosed(this);
    });
  }

  write(batch: Batch): void {
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
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  wake(): void {
    if (this.#awake) return;
    this.#awake = true;
    // After the promise callbacks that are due now: what completes together goes out together.
    process.nextTick(this.#flush);
  }

  close(reason: string, graceful: boolean): void {
    this.closeReason ||= reason;
    if (!graceful) {
      this.#socket.destroy();
      return;
    }
    this.#socket.destroySoon();
    // A peer that does not read would keep it open for ever.
    this.#linger ??= setTimeout(() => this.#socket.destroy(), LINGER_MS).unref();
  }

  /** Ends it whatever is left to send. */
  destroy(): void {
    this.#socket.destroy();
  }
}
