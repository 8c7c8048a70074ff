import { lstat, unlink } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import { ChunkPool } from '../wire/chunk-pool.ts';
import { Connection, type ConnectionHost } from './connection.ts';
import { type NbdCounters, newCounters } from './counters.ts';
import type { Endpoint } from './endpoint.ts';
import type { ExportCatalog, NbdExport } from './export.ts';
import type { TlsPolicy } from './handshake.ts';
import { DEFAULT_LIMITS, type NbdLimits } from './limits.ts';
import type { TlsCredentials } from './tls.ts';

/** What the server tells of events: pino's methods fit. */
export interface NbdLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

export interface NbdServerOptions {
  /** Address and port (0 picks one), or the path of a unix socket, which is made and at the end removed. */
  readonly listen: { readonly host: string; readonly port: number } | { readonly path: string };
  readonly catalog: ExportCatalog;
  /** Absent: no TLS. */
  readonly credentials?: TlsCredentials | undefined;
  /** Nobody is served without TLS. */
  readonly tlsRequired?: boolean | undefined;
  readonly limits?: Partial<NbdLimits>;
  readonly log?: NbdLog;
}

const TICK_MS = 1000;
/** Unused memory that is kept, in chunks: a few clients with reads of 1 MiB under way find theirs again, pages and all. */
const KEPT_CHUNKS = 64;

/**
 * An NBD server: listens on a TCP port or a unix socket, and serves the exports of a catalog.
 *
 *     const server = new NbdServer({ listen: { host: '127.0.0.1', port: 10809 }, catalog });
 *     await server.listen();
 *     …
 *     await server.close({ graceMs: 5000 });
 */
export class NbdServer implements ConnectionHost {
  readonly limits: NbdLimits;
  readonly counters: NbdCounters = newCounters();
  readonly pool: ChunkPool;
  readonly catalog: ExportCatalog;
  readonly credentials: TlsCredentials | undefined;
  readonly tls: TlsPolicy;
  readonly #options: NbdServerOptions;
  readonly #server: Server;
  /** In the order of their coming. */
  readonly #connections = new Set<Connection>();
  /** Those that still negotiate, oldest first. */
  readonly #pending = new Set<Connection>();
  readonly #byEndpoint = new Map<Endpoint, Connection>();
  /** Exports in use, with what ends the watch on their size. */
  readonly #watched = new Map<NbdExport, () => void>();
  #timer: NodeJS.Timeout | undefined;
  /** Time as connections see it: it does not run on while this process is stopped, so nobody is dropped for that. */
  #nowMs = 0;
  #lastTickMs = 0;
  #address: { host: string; port: number } | undefined;
  #closing: Promise<void> | undefined;
  #someClosed: (() => void) | undefined;

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.pool = new ChunkPool(this.limits.totalMemory, { keep: KEPT_CHUNKS });
    this.catalog = options.catalog;
    this.credentials = options.credentials;
    this.tls = options.credentials === undefined ? 'none' : options.tlsRequired === true ? 'required' : 'optional';
    if (options.tlsRequired === true && options.credentials === undefined) {
      throw new LunetteError('INVALID', 'TLS is required, and there are no keys for it');
    }
    this.#server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 }, (socket) =>
      this.#accept(socket),
    );
  }

  get closing(): boolean {
    return this.#closing !== undefined;
  }

  /** Starts to listen. @throws {LunetteError} when the address cannot be had; its cause is the system's error */
  async listen(): Promise<void> {
    const { listen } = this.#options;
    if ('path' in listen) await removeStaleSocket(listen.path);
    await new Promise<void>((resolve, reject) => {
      const failed = (error: Error): void =>
        reject(fromSystemError(error, 'cannot listen', 'path' in listen ? { path: listen.path } : {}));
      this.#server.once('error', failed);
      const listening = (): void => {
        this.#server.off('error', failed);
        // Running out of descriptors while accepting is no reason to fall.
        this.#server.on('error', (error) => this.#options.log?.warn({ error: error.message }, 'accepting failed'));
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

  /** Where it listens on TCP. @throws {LunetteError} CLOSED before listen() and on a unix socket */
  get address(): { readonly host: string; readonly port: number } {
    if (this.#address === undefined) throw new LunetteError('CLOSED', 'the server listens on no TCP port');
    return this.#address;
  }

  /** Connections open now. */
  get connections(): number {
    return this.#connections.size;
  }

  /**
   * Stops: no new connections; requests under way are answered, within `graceMs` (default 5000), then connections are closed and the unix
   * socket is removed. Safe to call twice.
   */
  close({ graceMs = 5000 }: { graceMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(graceMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(graceMs: number): Promise<void> {
    const deadline = performance.now() + graceMs;
    // Node removes a unix socket that it made.
    const stopped = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    const endpoints = [...this.#connections].map(({ endpoint }) => endpoint);
    for (const endpoint of endpoints) endpoint.finish('the server ends');
    while (this.#connections.size > 0 && performance.now() < deadline) {
      await this.#closedOrLate(Math.min(50, deadline - performance.now()));
    }
    for (const connection of [...this.#connections]) connection.destroy();
    await Promise.race([
      Promise.all(endpoints.map((endpoint) => endpoint.ended())),
      delay(Math.max(0, deadline - performance.now()) + 100),
    ]);
    for (const unwatch of this.#watched.values()) unwatch();
    this.#watched.clear();
    clearInterval(this.#timer);
    await stopped;
  }

  #closedOrLate(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#someClosed = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #accept(socket: Socket): void {
    const { counters, limits } = this;
    counters.connections++;
    if (this.closing || (this.#connections.size >= limits.maxConnections && this.#pending.size === 0)) {
      counters.refusedConnections++;
      socket.destroy();
      return;
    }
    // Whoever opens connections and says nothing pushes out his own, not those of others who work.
    if (this.#pending.size >= limits.maxPendingHandshakes || this.#connections.size >= limits.maxConnections) {
      counters.refusedConnections++;
      const [oldest] = this.#pending;
      // At once: its 'close' comes later, and the next connection must find the next one.
      if (oldest !== undefined) this.#pending.delete(oldest);
      oldest?.endpoint.close('too many connections that do not negotiate');
    }
    const connection = new Connection(socket, this, this.#nowMs, (closed) => this.#closed(closed));
    this.#connections.add(connection);
    this.#byEndpoint.set(connection.endpoint, connection);
    this.#pending.add(connection);
    counters.openConnections = this.#connections.size;
  }

  #closed(connection: Connection): void {
    this.#connections.delete(connection);
    this.#byEndpoint.delete(connection.endpoint);
    this.#pending.delete(connection);
    this.counters.openConnections = this.#connections.size;
    const { transmission } = connection.endpoint;
    const fields = { peer: connection.peer, reason: connection.closeReason };
    if (transmission !== undefined) {
      const { export: found } = transmission.agreement;
      this.#options.log?.info({ ...fields, export: found.name }, 'client gone');
      // Whoever was just given it has started by then.
      setImmediate(() => this.#left(found));
    }
    this.#someClosed?.();
  }

  #tick(): void {
    const ms = performance.now();
    const now = (this.#nowMs += Math.min(ms - this.#lastTickMs, 2 * TICK_MS));
    this.#lastTickMs = ms;
    for (const connection of this.#pending) {
      if (now - connection.sinceMs < this.limits.handshakeTimeoutMs) break;
      this.counters.timeouts++;
      connection.endpoint.close('negotiation took too long');
    }
    for (const connection of this.#connections) connection.endpoint.tick(now);
  }

  // --- what endpoints tell ---

  started(endpoint: Endpoint): void {
    const connection = this.#byEndpoint.get(endpoint);
    const found = endpoint.transmission?.agreement.export;
    if (connection === undefined || found === undefined) return;
    this.#pending.delete(connection);
    this.#options.log?.info({ peer: connection.peer, export: found.name }, 'client connected');
    if (this.#watched.has(found)) return;
    // Clients cannot be told of a new size: they are sent away, and learn it when they come back.
    const unwatch = found.image.onResize(() => this.#resized(found));
    this.#watched.set(found, unwatch);
  }

  /** A client has gone: ends what is kept for an export that none uses any more. */
  #left(found: NbdExport): void {
    for (const { endpoint } of this.#connections) if (endpoint.transmission?.agreement.export === found) return;
    this.#watched.get(found)?.();
    this.#watched.delete(found);
    this.catalog.released?.(found);
  }

  #resized(changed: NbdExport): void {
    for (const { endpoint } of [...this.#connections]) {
      if (endpoint.transmission?.agreement.export === changed) endpoint.finish('the export has a new size');
    }
  }
}

/** Removes a socket that nobody listens on any more. Leaves alone what is no socket, and sockets in use: listening then fails. */
async function removeStaleSocket(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined);
  if (found === undefined || !found.isSocket()) return;
  const dead = await new Promise<boolean>((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'));
  });
  if (dead) await unlink(path).catch(() => undefined);
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}
