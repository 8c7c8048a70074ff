import type { Socket } from 'node:net';
import { LunetteError, UsageError } from '../../formats/core/errors.ts';
import type { Connection } from '../edge/connection.ts';
import { delay, Listener } from '../edge/listener.ts';
import { ChunkPool } from '../wire/chunk-pool.ts';
import { type IscsiCounters, newCounters } from './counters.ts';
import { type Crc32c, crc32c } from './digest.ts';
import { Endpoint, type EndpointHost } from './endpoint.ts';
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
  readonly #listener: Listener<Endpoint>;
  #closing: Promise<void> | undefined;

  /** @throws {UsageError} for limits that cannot be and for two targets of one name */
  constructor(options: PortalOptions) {
    this.#options = options;
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    checkLimits(this.limits);
    this.pool = new ChunkPool(this.limits.totalMemory);
    this.crc32c = options.crc32c ?? crc32c;
    this.discovery = options.discovery ?? {};
    for (const target of options.targets ?? []) this.addTarget(target);
    const { maxConnections, maxPendingLogins, loginTimeoutMs } = this.limits;
    this.#listener = new Listener({
      listen: options.listen,
      limits: { maxConnections, maxPending: maxPendingLogins, pendingTimeoutMs: loginTimeoutMs },
      counters: this.counters,
      endpoint: (edge, socket) => new Endpoint(this, edge, localAddress(socket)),
      late: (endpoint) => {
        this.counters.loginTimeouts++;
        endpoint.close('login took too long');
      },
      onClosed: (connection) => this.#closed(connection),
      warn: (fields, message) => options.log?.warn(fields, message),
    });
  }

  /** Starts to listen. @throws {LunetteError} when the address cannot be had */
  listen(): Promise<void> {
    return this.#listener.listen();
  }

  /** Where it listens. @throws {LunetteError} CLOSED before listen() */
  get address(): { readonly host: string; readonly port: number } {
    const { address } = this.#listener;
    if (address === undefined) throw new LunetteError('CLOSED', 'the portal does not listen');
    return address;
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
    return this.#listener.connections.size;
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
    const connections = [...this.#listener.connections].filter(
      (c) => c.endpoint.session?.options.targetName === target.name,
    );
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
    const stopped = this.#listener.stop();
    for (const target of this.#targets.values()) target.close();
    for (const { endpoint } of [...this.#listener.pending]) endpoint.close('the portal closes');
    await this.#dismiss([...this.#listener.connections], graceMs);
    this.#listener.stopClock();
    await stopped;
  }

  /** Ends connections politely: asks for logout, waits, then drops them and waits for their commands to end. */
  async #dismiss(connections: readonly Connection<Endpoint>[], graceMs: number): Promise<void> {
    const deadline = performance.now() + graceMs;
    const sessions = connections.flatMap((connection) => connection.endpoint.session ?? []);
    for (const session of sessions) session.requestLogout(Math.max(1, Math.ceil(graceMs / 1000)));
    const open = (): Connection<Endpoint>[] =>
      connections.filter((connection) => this.#listener.connections.has(connection));
    // Most initiators log out at once. The others get that time only while they have commands under way.
    const idleDeadline = performance.now() + Math.min(graceMs / 2, 2000);
    for (;;) {
      const left = open();
      if (left.length === 0) break;
      const now = performance.now();
      const busy = left.some((connection) => (connection.endpoint.session?.tasks?.size ?? 0) > 0);
      if (now >= deadline || (now >= idleDeadline && !busy)) break;
      await this.#listener.someClosed(Math.min(50, deadline - now));
    }
    for (const connection of open()) connection.endpoint.close('the portal closes', true);
    const ended = Promise.all(sessions.map((session) => session.terminate()));
    await Promise.race([ended, delay(Math.max(0, deadline - performance.now()) + 100)]);
    for (const connection of open()) connection.destroy();
  }

  #closed({ endpoint, peer, closeReason }: Connection<Endpoint>): void {
    if (endpoint.session !== undefined) this.#options.log?.info({ peer, reason: closeReason }, 'session ended');
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
    const fields = {
      peer: this.#listener.established(endpoint)?.peer,
      initiator: login.initiator,
      target: login.target?.name,
    };
    this.#options.log?.info(fields, login.discovery ? 'discovery session' : 'session started');
  }

  internalError(error: unknown): void {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.#options.log?.warn({ error: text }, 'internal error: a connection is closed');
  }

  loginFailed(endpoint: Endpoint, login: Login<IscsiTarget>, status: number, reason: string): void {
    const fields = {
      peer: this.#listener.connectionOf(endpoint)?.peer,
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

/** Our end of a connection, as TargetAddress has it. */
function localAddress(socket: Socket): string {
  return formatAddress(socket.localAddress ?? '?', socket.localPort ?? 0);
}
