import { createServer, type Server, type Socket } from 'node:net';
import { fromSystemError, LunetteError, UsageError } from '../../formats/core/errors.ts';
import { ChunkPool } from '../wire/chunk-pool.ts';
import { Connection } from './connection.ts';
import { type IscsiCounters, newCounters } from './counters.ts';
import { type Crc32c, crc32c } from './digest.ts';
import type { Endpoint, EndpointHost } from './endpoint.ts';
import { DEFAULT_LIMITS, type IscsiLimits } from './limits.ts';
import type { Login, LoginAuthentication } from './login.ts';
import { formatAddress, normalizeName } from './names.ts';
import type { IscsiTarget } from './target.ts';
import type { TargetRecord } from './text-exchange.ts';

/** What the portal tells of events: pino's methods fit. */
export interface PortalLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

export interface PortalOptions {
  /** Address (name, IPv4, IPv6 without brackets) and port; 0 picks one. */
  readonly listen: { readonly host: string; readonly port: number };
  readonly targets?: readonly IscsiTarget[];
  readonly limits?: Partial<IscsiLimits>;
  /** What discovery sessions must prove. Default: nothing. */
  readonly discovery?: LoginAuthentication;
  /** A faster CRC32C than the portable one. */
  readonly crc32c?: Crc32c;
  readonly log?: PortalLog;
}

const TICK_MS = 1000;

/**
 * A network portal: listens, and serves one or several targets.
 *
 *     const portal = new Portal({ listen: { host: '127.0.0.1', port: 3260 }, targets: [target] });
 *     await portal.listen();
 *     …
 *     await portal.close({ graceMs: 8000 });
 */
export class Portal implements EndpointHost {
  readonly limits: IscsiLimits;
  readonly counters: IscsiCounters = newCounters();
  readonly pool: ChunkPool;
  readonly crc32c: Crc32c;
  readonly discovery: LoginAuthentication;
  readonly #options: PortalOptions;
  readonly #targets = new Map<string, IscsiTarget>();
  readonly #server: Server;
  /** In the order of their coming. */
  readonly #connections = new Set<Connection>();
  readonly #byEndpoint = new Map<Endpoint, Connection>();
  /** Those that have not logged in, oldest first. */
  readonly #pending = new Set<Connection>();
  #timer: NodeJS.Timeout | undefined;
  /** Time as connections see it: it does not run on while this process is stopped, so nobody is dropped for that. */
  #nowMs = 0;
  #lastTickMs = 0;
  #address: { host: string; port: number } | undefined;
  #closing: Promise<void> | undefined;
  #emptied: (() => void) | undefined;

  /** @throws {UsageError} for limits that cannot be and for two targets of one name */
  constructor(options: PortalOptions) {
    this.#options = options;
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    checkLimits(this.limits);
    this.pool = new ChunkPool(this.limits.totalMemory);
    this.crc32c = options.crc32c ?? crc32c;
    this.discovery = options.discovery ?? {};
    for (const target of options.targets ?? []) this.addTarget(target);
    this.#server = createServer({ noDelay: true, allowHalfOpen: false }, (socket) => this.#accept(socket));
  }

  /** Starts to listen. @throws {LunetteError} when the address cannot be had */
  listen(): Promise<void> {
    const { host, port } = this.#options.listen;
    return new Promise((resolve, reject) => {
      const failed = (error: Error): void =>
        reject(fromSystemError(error, `listening on ${formatAddress(host, port)}`));
      this.#server.once('error', failed);
      this.#server.listen({ host, port, backlog: 511 }, () => {
        this.#server.off('error', failed);
        // Running out of descriptors while accepting is no reason to fall.
        this.#server.on('error', (error) => this.#options.log?.warn({ error: error.message }, 'accepting failed'));
        const address = this.#server.address();
        if (address === null || typeof address === 'string') throw new LunetteError('INTERNAL', 'no TCP address');
        this.#address = { host: address.address, port: address.port };
        this.#lastTickMs = performance.now();
        this.#timer = setInterval(() => this.#tick(), TICK_MS);
        this.#timer.unref();
        resolve();
      });
    });
  }

  /** Where it listens. @throws {LunetteError} CLOSED before listen() */
  get address(): { readonly host: string; readonly port: number } {
    if (this.#address === undefined) throw new LunetteError('CLOSED', 'the portal does not listen');
    return this.#address;
  }

  /** Address and port as a URL has them. */
  get authority(): string {
    return formatAddress(this.address.host, this.address.port);
  }

  get targets(): readonly IscsiTarget[] {
    return [...this.#targets.values()];
  }

  /** Connections open now. */
  get connections(): number {
    return this.#connections.size;
  }

  /** Serves one target more. @throws {UsageError} EXISTS */
  addTarget(target: IscsiTarget): void {
    if (this.#targets.has(target.name)) throw new UsageError('EXISTS', `there is a target ${target.name} already`);
    this.#targets.set(target.name, target);
  }

  /** Serves a target no longer: its sessions end as at close(). */
  async removeTarget(name: string, { graceMs = 5000 }: { graceMs?: number } = {}): Promise<void> {
    const target = this.#targets.get(normalizeName(name));
    if (target === undefined) return;
    this.#targets.delete(target.name);
    target.close();
    const connections = [...this.#connections].filter((c) => c.endpoint.session?.options.targetName === target.name);
    await this.#dismiss(connections, graceMs);
  }

  /**
   * Stops: no new connections; asks initiators to log out, lets what is in flight finish, and ends within `graceMs` (default
   * 5000). Safe to call twice.
   */
  close({ graceMs = 5000 }: { graceMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(graceMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(graceMs: number): Promise<void> {
    const stopped = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const target of this.#targets.values()) target.close();
    for (const connection of [...this.#pending]) connection.endpoint.close('the portal closes');
    await this.#dismiss([...this.#connections], graceMs);
    clearInterval(this.#timer);
    await stopped;
  }

  /** Ends connections politely: asks for logout, waits, then drops them and waits for their commands to end. */
  async #dismiss(connections: readonly Connection[], graceMs: number): Promise<void> {
    const deadline = performance.now() + graceMs;
    const sessions = connections.flatMap((connection) => connection.endpoint.session ?? []);
    for (const session of sessions) session.requestLogout(Math.max(1, Math.ceil(graceMs / 1000)));
    const open = (): Connection[] => connections.filter((connection) => this.#connections.has(connection));
    // Most initiators log out at once. The others get that time only while they have commands under way.
    const idleDeadline = performance.now() + Math.min(graceMs / 2, 2000);
    for (;;) {
      const left = open();
      if (left.length === 0) break;
      const now = performance.now();
      const busy = left.some((connection) => (connection.endpoint.session?.tasks?.size ?? 0) > 0);
      if (now >= deadline || (now >= idleDeadline && !busy)) break;
      await this.#someClosed(Math.min(50, deadline - now));
    }
    for (const connection of open()) connection.endpoint.close('the portal closes', true);
    const ended = Promise.all(sessions.map((session) => session.terminate()));
    await Promise.race([ended, delay(Math.max(0, deadline - performance.now()) + 100)]);
    for (const connection of open()) connection.destroy();
  }

  /** Resolves when a connection has closed, or after a while. */
  #someClosed(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#emptied = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #accept(socket: Socket): void {
    const { counters, limits } = this;
    counters.connections++;
    if (this.#closing !== undefined || (this.#connections.size >= limits.maxConnections && this.#pending.size === 0)) {
      counters.refusedConnections++;
      socket.destroy();
      return;
    }
    // Whoever opens connections without logging in pushes out his own, not those of others who are about to.
    if (this.#pending.size >= limits.maxPendingLogins || this.#connections.size >= limits.maxConnections) {
      counters.refusedConnections++;
      const [oldest] = this.#pending;
      // At once: its 'close' comes later, and the next connection must find the next one.
      if (oldest !== undefined) this.#pending.delete(oldest);
      oldest?.endpoint.close('too many connections that do not log in');
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
    if (connection.endpoint.session !== undefined) {
      this.#options.log?.info({ peer: connection.peer, reason: connection.closeReason }, 'session ended');
    }
    this.#emptied?.();
  }

  #tick(): void {
    const ms = performance.now();
    const now = (this.#nowMs += Math.min(ms - this.#lastTickMs, 2 * TICK_MS));
    this.#lastTickMs = ms;
    for (const connection of this.#pending) {
      if (now - connection.sinceMs < this.limits.loginTimeoutMs) break;
      this.counters.loginTimeouts++;
      connection.endpoint.close('login took too long');
    }
    for (const connection of this.#connections) connection.endpoint.tick(now);
  }

  // --- what endpoints ask ---

  findTarget(name: string): IscsiTarget | undefined {
    return this.#targets.get(name);
  }

  targetsFor(initiator: string, localAddress: string): TargetRecord[] {
    return this.targets
      .filter((target) => target.allows(initiator))
      .map(({ name, portalGroupTag }) => ({ name, addresses: [`${localAddress},${portalGroupTag}`] }));
  }

  loggedIn(endpoint: Endpoint, login: Login<IscsiTarget>): void {
    const connection = this.#byEndpoint.get(endpoint);
    if (connection !== undefined) this.#pending.delete(connection);
    const fields = { peer: connection?.peer, initiator: login.initiator, target: login.target?.name };
    this.#options.log?.info(fields, login.discovery ? 'discovery session' : 'session started');
  }

  internalError(error: unknown): void {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.#options.log?.warn({ error: text }, 'internal error: a connection is closed');
  }

  loginFailed(endpoint: Endpoint, login: Login<IscsiTarget>, status: number, reason: string): void {
    const fields = {
      peer: this.#byEndpoint.get(endpoint)?.peer,
      initiator: login.initiator,
      status: `0x${status.toString(16).padStart(4, '0')}`,
      reason,
    };
    this.#options.log?.warn(fields, 'login refused');
  }
}

function checkLimits(limits: IscsiLimits): void {
  const within = (name: keyof IscsiLimits, low: number, high: number): void => {
    const value = limits[name];
    if (Number.isInteger(value) && value >= low && value <= high) return;
    throw new UsageError('INVALID', `limit ${name} is ${value}, not in ${low} to ${high}`);
  };
  within('queueDepth', 1, 1000);
  within('immediateCommands', 1, 1000);
  within('maxRecvDataSegmentLength', 512, 0xffffff);
  within('maxBurstLength', 512, 0xffffff);
  within('firstBurstLength', 512, 0xffffff);
  within('maxOutstandingR2T', 1, 16);
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}
