import { createServer, type Server, type Socket } from 'node:net';
import { fromSystemError } from '../../formats/core/errors.ts';
import { formatAddress } from './address.ts';
import { Connection, type EdgeEndpoint } from './connection.ts';
import { removeStaleSocket } from './stale-socket.ts';

/** A TCP address (name, IPv4, IPv6 without brackets; port 0 picks one), or the path of a unix socket, which is made and at the end removed. */
export type ListenAddress = { readonly host: string; readonly port: number } | { readonly path: string };

/** Bounds on connections; times in ms. */
export interface ListenerLimits {
  /** Connections in all. */
  readonly maxConnections: number;
  /** Connections that have not got through negotiation; one more evicts the oldest of them. */
  readonly maxPending: number;
  /** From the first byte to the end of negotiation. */
  readonly pendingTimeoutMs: number;
}

/** What a listener counts. */
export interface ListenerCounters {
  connections: number;
  openConnections: number;
  refusedConnections: number;
}

export interface ListenerOptions<E extends TickingEndpoint> {
  readonly listen: ListenAddress;
  readonly limits: ListenerLimits;
  readonly counters: ListenerCounters;
  readonly keepAliveMs?: number;
  readonly endpoint: (connection: Connection<E>, socket: Socket) => E;
  /** Negotiation of a connection took too long. */
  readonly late: (endpoint: E) => void;
  readonly onClosed: (connection: Connection<E>) => void;
  readonly warn: (fields: object, message: string) => void;
}

export interface TickingEndpoint extends EdgeEndpoint {
  /** About once a second. */
  tick(nowMs: number): void;
}

const TICK_MS = 1000;

/**
 * Listens on a port or a unix socket and keeps the connections that come: how many, how long they may negotiate, a clock for them. What they speak is
 * their endpoints' business.
 */
export class Listener<E extends TickingEndpoint> {
  readonly #options: ListenerOptions<E>;
  readonly #server: Server;
  /** In the order of their coming. */
  readonly #connections = new Set<Connection<E>>();
  /** Those that still negotiate, oldest first. */
  readonly #pending = new Set<Connection<E>>();
  readonly #byEndpoint = new Map<E, Connection<E>>();
  #timer: NodeJS.Timeout | undefined;
  /** Time as connections see it: it does not run on while this process is stopped, so nobody is dropped for that. */
  #nowMs = 0;
  #lastTickMs = 0;
  #address: { host: string; port: number } | undefined;
  #stopped: Promise<void> | undefined;
  #someClosed: (() => void) | undefined;

  constructor(options: ListenerOptions<E>) {
    this.#options = options;
    const keepAlive = options.keepAliveMs !== undefined && {
      keepAlive: true,
      keepAliveInitialDelay: options.keepAliveMs,
    };
    this.#server = createServer({ noDelay: true, ...keepAlive }, (socket) => this.#accept(socket));
  }

  /** Starts to listen. @throws {LunetteError} when the address cannot be had; its cause is the system's error */
  async listen(): Promise<void> {
    const { listen, warn } = this.#options;
    if ('path' in listen) await removeStaleSocket(listen.path);
    await new Promise<void>((resolve, reject) => {
      const failed = (error: Error): void =>
        reject(
          'path' in listen
            ? fromSystemError(error, 'cannot listen', { path: listen.path })
            : fromSystemError(error, `listening on ${formatAddress(listen.host, listen.port)}`),
        );
      this.#server.once('error', failed);
      const listening = (): void => {
        this.#server.off('error', failed);
        // Running out of descriptors while accepting is no reason to fall.
        this.#server.on('error', (error) => warn({ error: error.message }, 'accepting failed'));
        resolve();
      };
      if ('path' in listen) {
        // Who may connect may write to the disk: the socket is its owner's from its first moment on. It is made inside of this call.
        const before = process.umask(0o177);
        try {
          this.#server.listen({ path: listen.path, backlog: 128 }, listening);
        } finally {
          process.umask(before);
        }
      } else this.#server.listen({ ...listen, backlog: 511 }, listening);
    });
    const address = this.#server.address();
    if (address !== null && typeof address === 'object') this.#address = { host: address.address, port: address.port };
    this.#lastTickMs = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#timer.unref();
  }

  /** Where it listens on TCP; undefined before listen() and on a unix socket. */
  get address(): { readonly host: string; readonly port: number } | undefined {
    return this.#address;
  }

  get connections(): ReadonlySet<Connection<E>> {
    return this.#connections;
  }

  /** Connections that still negotiate. */
  get pending(): ReadonlySet<Connection<E>> {
    return this.#pending;
  }

  connectionOf(endpoint: E): Connection<E> | undefined {
    return this.#byEndpoint.get(endpoint);
  }

  /** An endpoint has got through negotiation. @returns its connection */
  established(endpoint: E): Connection<E> | undefined {
    const connection = this.#byEndpoint.get(endpoint);
    if (connection !== undefined) this.#pending.delete(connection);
    return connection;
  }

  /** Takes no new connections. Node removes a unix socket that it made. @returns resolves when the port is free */
  stop(): Promise<void> {
    this.#stopped ??= new Promise<void>((resolve) => this.#server.close(() => resolve()));
    return this.#stopped;
  }

  /** Ends the clock: after stop(), when no connection is left. */
  stopClock(): void {
    clearInterval(this.#timer);
  }

  /** Resolves when a connection has closed, or after a while. */
  someClosed(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#someClosed = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #accept(socket: Socket): void {
    const { counters, limits, endpoint } = this.#options;
    counters.connections++;
    const full = this.#connections.size >= limits.maxConnections;
    if (this.#stopped !== undefined || (full && this.#pending.size === 0)) {
      counters.refusedConnections++;
      socket.destroy();
      return;
    }
    // Whoever opens connections and says nothing pushes out his own, not those of others who work.
    if (full || this.#pending.size >= limits.maxPending) {
      counters.refusedConnections++;
      const [oldest] = this.#pending;
      // At once: its 'close' comes later, and the next connection must find the next one.
      if (oldest !== undefined) this.#pending.delete(oldest);
      oldest?.endpoint.close('too many connections that do not negotiate');
    }
    const connection = new Connection<E>(socket, {
      nowMs: this.#nowMs,
      endpoint: (edge) => endpoint(edge, socket),
      onClosed: (closed) => this.#closed(closed),
    });
    this.#connections.add(connection);
    this.#byEndpoint.set(connection.endpoint, connection);
    this.#pending.add(connection);
    counters.openConnections = this.#connections.size;
  }

  #closed(connection: Connection<E>): void {
    this.#connections.delete(connection);
    this.#byEndpoint.delete(connection.endpoint);
    this.#pending.delete(connection);
    this.#options.counters.openConnections = this.#connections.size;
    this.#options.onClosed(connection);
    this.#someClosed?.();
  }

  #tick(): void {
    const ms = performance.now();
    const now = (this.#nowMs += Math.min(ms - this.#lastTickMs, 2 * TICK_MS));
    this.#lastTickMs = ms;
    for (const connection of this.#pending) {
      if (now - connection.sinceMs < this.#options.limits.pendingTimeoutMs) break;
      this.#options.late(connection.endpoint);
    }
    for (const { endpoint } of this.#connections) endpoint.tick(now);
  }
}

/** A pause that keeps no process alive. */
export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}
