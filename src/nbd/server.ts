import { LunetteError } from '../../formats/core/errors.ts';
import type { Connection } from '../edge/connection.ts';
import { delay, type ListenAddress, Listener } from '../edge/listener.ts';
import { registerMemory } from '../io/native.ts';
import { ChunkPool } from '../wire/chunk-pool.ts';
import { type NbdCounters, newCounters } from './counters.ts';
import { Endpoint, type EndpointHost } from './endpoint.ts';
import type { ExportCatalog, NbdExport } from './export.ts';
import type { TlsPolicy } from './handshake.ts';
import { DEFAULT_LIMITS, type NbdLimits } from './limits.ts';
import { refusalOfClient, serverTlsOptions, type TlsCredentials } from './tls.ts';

/** What the server tells of events: pino's methods fit. */
export interface NbdLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

export interface NbdServerOptions {
  /** Address and port (0 picks one), or the path of a unix socket, which is made and at the end removed. */
  readonly listen: ListenAddress;
  readonly catalog: ExportCatalog;
  /** Absent: no TLS. */
  readonly credentials?: TlsCredentials | undefined;
  /** Nobody is served without TLS. */
  readonly tlsRequired?: boolean | undefined;
  readonly limits?: Partial<NbdLimits>;
  readonly log?: NbdLog;
}

/** Unused memory that is kept, in chunks: a few clients with reads of 1 MiB under way find theirs again, pages and all. */
const KEPT_CHUNKS = 64;
/** Silent peers are asked whether they are there after this time. */
const KEEP_ALIVE_MS = 60_000;

/**
 * An NBD server: listens on a TCP port or a unix socket, and serves the exports of a catalog.
 *
 *     const server = new NbdServer({ listen: { host: '127.0.0.1', port: 10809 }, catalog });
 *     await server.listen();
 *     …
 *     await server.close({ graceMs: 5000 });
 */
export class NbdServer implements EndpointHost {
  readonly limits: NbdLimits;
  readonly counters: NbdCounters = newCounters();
  readonly pool: ChunkPool;
  readonly catalog: ExportCatalog;
  readonly tls: TlsPolicy;
  readonly #options: NbdServerOptions;
  readonly #listener: Listener<Endpoint>;
  /** Exports in use, with what ends the watch on their size. */
  readonly #watched = new Map<NbdExport, () => void>();
  #closing: Promise<void> | undefined;

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.pool = new ChunkPool(this.limits.totalMemory, { keep: KEPT_CHUNKS, made: registerMemory });
    this.catalog = options.catalog;
    this.tls = options.credentials === undefined ? 'none' : options.tlsRequired === true ? 'required' : 'optional';
    if (options.tlsRequired === true && options.credentials === undefined) {
      throw new LunetteError('INVALID', 'TLS is required, and there are no keys for it');
    }
    const { maxConnections, maxPendingHandshakes, handshakeTimeoutMs } = this.limits;
    this.#listener = new Listener({
      listen: options.listen,
      limits: { maxConnections, maxPending: maxPendingHandshakes, pendingTimeoutMs: handshakeTimeoutMs },
      counters: this.counters,
      keepAliveMs: KEEP_ALIVE_MS,
      endpoint: (edge) => new Endpoint(this, edge, () => this.#startTls(edge)),
      late: (endpoint) => {
        this.counters.timeouts++;
        endpoint.close('negotiation took too long');
      },
      onClosed: (connection) => this.#closed(connection),
      warn: (fields, message) => options.log?.warn(fields, message),
    });
  }

  get closing(): boolean {
    return this.#closing !== undefined;
  }

  /** Starts to listen. @throws {LunetteError} when the address cannot be had; its cause is the system's error */
  listen(): Promise<void> {
    return this.#listener.listen();
  }

  /** Where it listens on TCP. @throws {LunetteError} CLOSED before listen() and on a unix socket */
  get address(): { readonly host: string; readonly port: number } {
    const { address } = this.#listener;
    if (address === undefined) throw new LunetteError('CLOSED', 'the server listens on no TCP port');
    return address;
  }

  /** Connections open now. */
  get connections(): number {
    return this.#listener.connections.size;
  }

  /** Clients that use exports that this is true of. */
  clientsOf(isMeant: (found: NbdExport) => boolean): number {
    return this.#using(isMeant).length;
  }

  /** Ends the connections of whoever uses certain exports: requests under way are answered, within `graceMs`. Nobody may find them any more. */
  dismiss(isMeant: (found: NbdExport) => boolean, reason: string, graceMs: number): Promise<void> {
    return this.#end(this.#using(isMeant), reason, performance.now() + graceMs);
  }

  #using(isMeant: (found: NbdExport) => boolean): Connection<Endpoint>[] {
    return [...this.#listener.connections].filter(({ endpoint }) => {
      const found = endpoint.transmission?.agreement.export;
      return found !== undefined && isMeant(found);
    });
  }

  async #end(leaving: readonly Connection<Endpoint>[], reason: string, deadline: number): Promise<void> {
    const { connections } = this.#listener;
    const open = (): Connection<Endpoint>[] => leaving.filter((connection) => connections.has(connection));
    for (const { endpoint } of leaving) endpoint.finish(reason);
    while (open().length > 0 && performance.now() < deadline) {
      await this.#listener.someClosed(Math.min(50, deadline - performance.now()));
    }
    for (const connection of open()) connection.destroy();
    await Promise.race([
      Promise.all(leaving.map(({ endpoint }) => endpoint.ended())),
      delay(Math.max(0, deadline - performance.now()) + 100),
    ]);
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
    const stopped = this.#listener.stop();
    await this.#end([...this.#listener.connections], 'the server ends', performance.now() + graceMs);
    for (const unwatch of this.#watched.values()) unwatch();
    this.#watched.clear();
    this.#listener.stopClock();
    await stopped;
  }

  #closed({ endpoint, peer, closeReason }: Connection<Endpoint>): void {
    const { transmission } = endpoint;
    if (transmission === undefined) return;
    const { export: found } = transmission.agreement;
    this.#options.log?.info({ peer, reason: closeReason, export: found.name }, 'client gone');
  }

  #startTls(connection: Connection<Endpoint>): void {
    const { credentials } = this.#options;
    if (credentials === undefined) {
      connection.close('no credentials for TLS', false);
      return;
    }
    connection.startTls(
      serverTlsOptions(credentials),
      (secure) => {
        const refusal = refusalOfClient(secure, credentials);
        if (refusal === undefined) connection.endpoint.encrypted();
        return refusal;
      },
      () => {
        this.counters.tlsFailures++;
      },
    );
  }

  // --- what endpoints tell ---

  started(endpoint: Endpoint): void {
    const connection = this.#listener.established(endpoint);
    const found = endpoint.transmission?.agreement.export;
    if (connection === undefined || found === undefined) return;
    this.#options.log?.info({ peer: connection.peer, export: found.name }, 'client connected');
    if (this.#watched.has(found)) return;
    // Clients cannot be told of a new size: they are sent away, and learn it when they come back.
    const unwatch = found.image.onResize(() => this.#resized(found));
    this.#watched.set(found, unwatch);
  }

  /** Ends what is kept for an export when no client uses it any more. */
  left(found: NbdExport): void {
    // Whoever is just being given it holds it by then.
    setImmediate(() => this.#release(found));
  }

  #release(found: NbdExport): void {
    for (const { endpoint } of this.#listener.connections) {
      if (endpoint.holds(found)) return;
    }
    this.#watched.get(found)?.();
    this.#watched.delete(found);
    this.catalog.released?.(found);
  }

  #resized(changed: NbdExport): void {
    for (const { endpoint } of [...this.#listener.connections]) {
      if (endpoint.transmission?.agreement.export === changed) endpoint.finish('the export has a new size');
    }
  }
}
