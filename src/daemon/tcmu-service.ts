import { setTimeout as delay } from 'node:timers/promises';
import { errnoOf, LunetteError } from '../../formats/core/errors.ts';
import type { ImageHost } from '../../formats/index.ts';
import type { BusService } from '../dbus/bus-service.ts';
import type { TcmuObjects } from '../dbus/tcmu-objects.ts';
import type { TcmuUio } from '../lio/uio-devices.ts';
import { keyOf, parseBackstoreName } from '../lio/user-backstore.ts';
import type { AwaitedEvent } from '../netlink/channel.ts';
import { closeInOrder } from './close-in-order.ts';
import { Coalesced } from './coalesced.ts';
import { LastingChannel } from './lasting-channel.ts';
import { describe, type ServerLog } from './log.ts';
import { connectSystemBus } from './system-bus.ts';
import { busHandlers } from './tcmu-bus.ts';
import { errnoFor, TcmuDisk } from './tcmu-disk.ts';
import type { TcmuEntry } from './tcmu-entry.ts';
import { isOurHandler } from './tcmu-handlers.ts';
import { KERNEL, type TcmuKernel } from './tcmu-kernel.ts';

const EOPNOTSUPP = -95;
const ENOENT = -2;
const EAGAIN = -11;

/** An image that could not be opened is tried again after so long, then ever later, ms. */
const FIRST_RETRY_MS = 2000;
const LAST_RETRY_MS = 60_000;
/** A ring that breaks more often than this within a minute is left alone. */
const MAX_REPAIRS = 3;
const REPAIR_WINDOW_MS = 60_000;

export interface TcmuServiceOptions {
  readonly host: ImageHost;
  readonly log: ServerLog;
  /** Default: the one under this process. */
  readonly kernel?: TcmuKernel | undefined;
  /** Where targetcli finds us; it stays the caller's. Default: a connection of its own. */
  readonly bus?: BusService | undefined;
  /** What is done about devices of handlers that nobody has registered: without an answer their creator waits for ever. */
  readonly unknownHandlers?: 'refuse' | 'leave' | undefined;
}

/**
 * The userspace end of the kernel's TCMU devices, in the place of tcmu-runner: hears of them over netlink, serves their images, and shows
 * itself to targetcli over D-Bus. Devices that are there already are taken over, with what initiators have in flight.
 */
export class TcmuService {
  readonly #host: ImageHost;
  readonly #log: ServerLog;
  readonly #options: TcmuServiceOptions;
  readonly #entries = new Map<string, TcmuEntry>();
  readonly #kernel: TcmuKernel;
  readonly #lock: { release(): void };
  #channel: LastingChannel | undefined;
  #objects: TcmuObjects | undefined;
  #ownBus: BusService | undefined;
  readonly #stopping = new AbortController();
  readonly #looks = new Coalesced((why) => this.#lookAround(why));

  private constructor(options: TcmuServiceOptions, kernel: TcmuKernel, lock: { release(): void }) {
    this.#kernel = kernel;
    this.#host = options.host;
    this.#log = options.log;
    this.#options = options;
    this.#lock = lock;
  }

  /**
   * Begins to serve.
   *
   * @throws {LunetteError} UNAVAILABLE without the kernel's module; LOCKED while another program serves TCMU devices; ACCESS without
   *   privilege
   */
  static async start(options: TcmuServiceOptions): Promise<TcmuService> {
    const { kernel = KERNEL } = options;
    if (!kernel.isLoaded()) {
      throw new LunetteError('UNAVAILABLE', 'the kernel module target_core_user is not loaded', {
        help: 'As root: modprobe target_core_user',
      });
    }
    const lock = await kernel.takeLock().catch((error: unknown) => {
      if (error instanceof LunetteError && error.code === 'LOCKED') {
        error.help =
          'Only one program can serve TCMU devices: systemctl stop tcmu-runner, or end the other lunette daemon.';
      }
      throw error;
    });
    const service = new TcmuService(options, kernel, lock);
    try {
      await service.#begin();
      return service;
    } catch (error) {
      await service.close().catch(() => undefined);
      throw error;
    }
  }

  /** The disks that are served now. */
  get disks(): readonly TcmuDisk[] {
    return [...this.#entries.values()].flatMap(({ disk }) => (disk === undefined ? [] : [disk]));
  }

  /** Devices that are not served as they should be, in words: their initiators are told to come again. */
  get problems(): readonly string[] {
    return [
      ...(this.#channel?.problems ?? []),
      ...[...this.#entries.values()].flatMap(({ backstore: { hba, name }, disk, problem }) =>
        disk === undefined || problem !== undefined
          ? [`user_${hba}/${name}: ${problem ?? 'its image is not open'}`]
          : [],
      ),
    ];
  }

  /**
   * Finishes what is in flight, flushes and closes the images. Commands that come after wait in the rings for whoever serves them next, as
   * long as cmd_time_out lets them. Safe to call twice.
   */
  close(): Promise<void> {
    this.#stopping.abort();
    return closeInOrder(
      [
        () => this.#objects?.close(),
        () => this.#ownBus?.close(),
        ...[...this.#entries.values()].map((entry) => () => this.#inTurn(entry, () => this.#retire(entry))),
        () => this.#endNetlink(),
        () => this.#lock.release(),
      ].map((step) => async () => step()),
    );
  }

  /** From here on nobody waits for our answers. Who does already hears EINTR, and does not wait the next time. */
  async #endNetlink(): Promise<void> {
    const channel = this.#channel;
    if (channel === undefined) return;
    channel.endAnswering();
    await this.#kernel.freeNetlinkWaiters();
    this.#channel = undefined;
    channel.close();
  }

  // --- the beginning ---

  async #begin(): Promise<void> {
    // Disks first: initiators wait for them. Whoever sees the name on the bus can make devices at once.
    await this.#kernel.blockNetlink(true);
    try {
      this.#channel = this.#listen();
      await this.#takeOver();
      // What still waits is of no kind that can be known: whoever waits hears EINTR.
      await this.#kernel.abortNetlinkWaiters();
    } finally {
      await this.#kernel.blockNetlink(false);
    }
    await this.#publish();
  }

  #listen(): LastingChannel {
    return new LastingChannel((listener) => this.#kernel.channel(listener), {
      event: (event) => this.#onEvent(event),
      overflow: () => void this.#looks.ask('events were lost'),
      expired: (deviceId) =>
        this.#log.error({ deviceId }, `device ${deviceId}: not answered in time, the kernel was told that it failed`),
      trouble: (what, errno) => this.#log.warn({ errno }, `netlink: ${what} (errno ${-errno})`),
      lost: (problem) => this.#log.error({}, problem),
      back: () => void this.#looks.ask('the socket is open again'),
    });
  }

  async #publish(): Promise<void> {
    const bus = this.#options.bus ?? (this.#ownBus = await connectSystemBus(this.#log));
    if (bus === undefined) return;
    const { TcmuObjects } = await import('../dbus/tcmu-objects.ts');
    const find = (handler: string, device: string): TcmuDisk | undefined =>
      [...this.#entries.values()].find(
        ({ uio: { backstore } }) => backstore.name === device && backstore.config.startsWith(`${handler}/`),
      )?.disk;
    this.#objects = new TcmuObjects(bus, busHandlers(this.#host, find));
    try {
      await this.#objects.publish();
    } catch (error) {
      if (error instanceof LunetteError && error.code === 'EXISTS') throw error;
      this.#log.warn({ error }, `targetcli cannot see us: ${describe(error)}`);
    }
  }

  /** Serves all devices that are there. @returns their keys */
  async #takeOver(): Promise<ReadonlySet<string>> {
    const devices = (await this.#kernel.devices()).filter(({ backstore }) => isOurHandler(backstore.config));
    const entries = devices.map((uio) => this.#entry(uio));
    await Promise.all(entries.map((entry) => (entry.disk === undefined ? this.#tryAdopt(entry) : undefined)));
    return new Set(entries.map(({ backstore }) => backstore.key));
  }

  /** Takes over one device. One with which that fails does not keep us from the others. */
  async #tryAdopt(entry: TcmuEntry): Promise<void> {
    try {
      await this.#inTurn(entry, () => this.#adopt(entry));
      entry.problem = undefined;
    } catch (error) {
      const removed = !(error instanceof LunetteError) && errnoOf(error) === 'ENOENT'; // since it was seen
      if (removed) return this.#inTurn(entry, () => this.#forget(entry));
      const { key } = entry.backstore;
      entry.problem = describe(error);
      this.#log.error({ error, device: key }, `${key}: ${entry.problem}; initiators are told to come again`);
      void this.#retryLater(entry, FIRST_RETRY_MS);
    }
  }

  /** Takes over one device: with its commands, or while its creator still waits. */
  async #adopt(entry: TcmuEntry): Promise<void> {
    const { backstore } = entry;
    if (entry.disk !== undefined || entry.removed || this.#stopping.signal.aborted) return;
    entry.deviceId ??= await backstore.deviceId();
    if (!(await backstore.block(true))) {
      await this.#finishAdding(entry);
      return;
    }
    await backstore.resetRing();
    await this.#open(entry);
    await backstore.block(false);
    this.#log.info({ device: backstore.key }, `${backstore.key}: taken over (${entry.uio.backstore.config})`);
  }

  /** Somebody enabled the device while nobody served: the answer is still waited for. */
  async #finishAdding(entry: TcmuEntry): Promise<void> {
    const { backstore, deviceId } = entry;
    if (deviceId === undefined) return;
    let status = 0;
    try {
      await this.#open(entry);
      this.#log.info(
        { device: backstore.key },
        `${backstore.key}: added, after its creator had waited (${entry.uio.backstore.config})`,
      );
    } catch (error) {
      status = errnoFor(error);
      this.#entries.delete(backstore.key);
      this.#log.error({ error, device: backstore.key }, `${backstore.key}: ${describe(error)}`);
    }
    this.#channel?.answerMissedAdd(deviceId, status);
  }

  async #retryLater(entry: TcmuEntry, waitMs: number): Promise<void> {
    try {
      await delay(waitMs, undefined, { signal: this.#stopping.signal, ref: false });
    } catch {
      return;
    }
    await this.#inTurn(entry, async () => {
      if (entry.removed || this.#stopping.signal.aborted) return;
      try {
        if (entry.disk === undefined) await this.#open(entry);
        await entry.backstore.block(false);
        entry.problem = undefined;
        this.#log.info({ device: entry.backstore.key }, `${entry.backstore.key}: taken over at last`);
      } catch (error) {
        this.#log.warn({ error, device: entry.backstore.key }, `${entry.backstore.key}: still not: ${describe(error)}`);
        void this.#retryLater(entry, Math.min(2 * waitMs, LAST_RETRY_MS));
      }
    });
  }

  /** Events were lost: finds devices that came or went meanwhile. */
  async #lookAround(why: string): Promise<void> {
    if (this.#stopping.signal.aborted) return;
    this.#log.warn({}, `netlink: ${why}, looking for devices`);
    try {
      await this.#kernel.blockNetlink(true);
      const seen = await this.#takeOver();
      for (const entry of [...this.#entries.values()]) {
        if (!seen.has(entry.backstore.key)) await this.#inTurn(entry, () => this.#forget(entry));
      }
      await this.#kernel.abortNetlinkWaiters();
    } catch (error) {
      this.#log.error({ error }, `looking for devices failed: ${describe(error)}`);
    } finally {
      await this.#kernel.blockNetlink(false).catch(() => undefined);
    }
  }

  // --- events ---

  #onEvent(event: AwaitedEvent): void {
    const name = parseBackstoreName(event.name);
    const handler = name?.config.split('/')[0] ?? '';
    if (name === undefined || !(isOurHandler(name.config) || this.#entries.has(keyOf(name)))) {
      this.#onForeign(event, handler);
      return;
    }
    if (this.#stopping.signal.aborted && event.kind !== 'removed') {
      this.#channel?.answer(event, EAGAIN);
      return;
    }
    void this.#handle(event, name.config).catch((error: unknown) => {
      this.#log.error({ error, device: event.name }, `${event.name}: ${describe(error)}`);
      this.#channel?.answer(event, errnoFor(error));
    });
  }

  /** A device of a handler that is not ours. */
  #onForeign(event: AwaitedEvent, handler: string): void {
    if (this.#options.unknownHandlers === 'leave' || this.#objects?.isForeign(handler) === true) {
      this.#channel?.leave(event);
      return;
    }
    // Its removal must not fail for want of somebody who knows it.
    this.#channel?.answer(event, event.kind === 'removed' ? 0 : ENOENT);
    if (event.kind === 'added')
      this.#log.warn({ device: event.name }, `${event.name}: refused, there is no handler ${handler}`);
  }

  async #handle(event: AwaitedEvent, config: string): Promise<void> {
    const name = parseBackstoreName(event.name);
    if (name === undefined) return;
    const key = keyOf(name);
    if (event.kind === 'added') {
      const uio = await this.#kernel.device(event.minor);
      if (uio === undefined)
        throw new LunetteError('NOT_FOUND', 'the device is not there', { path: `/dev/uio${event.minor}` });
      const entry = this.#entry(uio);
      entry.deviceId = event.deviceId;
      await this.#inTurn(entry, () => this.#added(entry, event));
      return;
    }
    const entry = this.#entries.get(key);
    if (entry === undefined) {
      this.#channel?.answer(event, event.kind === 'removed' ? 0 : ENOENT);
      return;
    }
    if (event.kind === 'removed') {
      await this.#inTurn(entry, async () => {
        await this.#forget(entry);
        this.#channel?.answer(event, 0);
        this.#log.info({ device: key }, `${key}: removed (${config})`);
      });
      return;
    }
    const changed = event;
    await this.#inTurn(entry, () => this.#reconfigure(entry, changed));
  }

  async #added(entry: TcmuEntry, event: AwaitedEvent): Promise<void> {
    const { key } = entry.backstore;
    // Served already: the kernel had given up an event whose image opened late.
    if (entry.disk !== undefined) {
      this.#channel?.answer(event, 0);
      return;
    }
    try {
      await this.#open(entry);
      entry.problem = undefined;
    } catch (error) {
      this.#entries.delete(key);
      this.#log.error({ error, device: key }, `${key}: ${describe(error)}`);
      this.#channel?.answer(event, errnoFor(error));
      return;
    }
    if (this.#channel?.answer(event, 0) === true) {
      this.#log.info({ device: key }, `${key}: added (${entry.uio.backstore.config})`);
      return;
    }
    // Its creator was told that it failed, and the kernel has taken it back.
    await this.#forget(entry);
  }

  async #reconfigure(entry: TcmuEntry, event: Extract<AwaitedEvent, { kind: 'reconfigured' }>): Promise<void> {
    const { change } = event;
    let status = EOPNOTSUPP;
    if (change !== undefined && entry.disk !== undefined) {
      if ('config' in change) {
        // targetctl restore writes every attribute, with the value that it has.
        if (change.config === entry.disk.config) status = 0;
        else if (entry.disk.optical) {
          await entry.disk.changeMedium(this.#host, change.config, this.#log);
          entry.uio = { ...entry.uio, backstore: { ...entry.uio.backstore, config: change.config } };
          this.#log.info({ device: entry.backstore.key }, `${entry.backstore.key}: another disc (${change.config})`);
          status = 0;
        }
      } else if ('size' in change) {
        await entry.disk.resize(change.size);
        status = 0;
      } else {
        // What initiators are told is that there is a cache, so they flush: that is right in both cases.
        status = 0;
      }
    }
    this.#channel?.answer(event, status);
  }

  #entry(uio: TcmuUio): TcmuEntry {
    const backstore = this.#kernel.backstore(uio.backstore);
    const known = this.#entries.get(backstore.key);
    if (known !== undefined) {
      known.uio = uio;
      return known;
    }
    const entry: TcmuEntry = {
      backstore,
      uio,
      deviceId: undefined,
      disk: undefined,
      queue: Promise.resolve(),
      removed: false,
      repairs: [],
      problem: undefined,
    };
    this.#entries.set(backstore.key, entry);
    return entry;
  }

  #inTurn(entry: TcmuEntry, work: () => Promise<void>): Promise<void> {
    const done = entry.queue.then(work);
    entry.queue = done.catch(() => undefined);
    return done;
  }

  async #open(entry: TcmuEntry): Promise<void> {
    const disk = await TcmuDisk.open(this.#host, entry.uio, this.#log, this.#kernel, {
      broken: (reason) => this.#broken(entry, disk, reason),
      gone: () => void this.#inTurn(entry, () => this.#vanished(entry, disk)),
    });
    try {
      disk.attach(entry.uio);
    } catch (error) {
      await disk.close().catch(() => undefined);
      throw error;
    }
    entry.disk = disk;
    // Aborts reach us then. Kernels before 5.10 have none.
    await entry.backstore.setAttribute('tmr_notification', 1).catch(() => undefined);
  }

  /** The ring is unusable: emptied, and begun anew. What was in flight comes again. */
  async #repair(entry: TcmuEntry, disk: TcmuDisk, reason: string): Promise<void> {
    if (entry.disk !== disk) return;
    const { key } = entry.backstore;
    const now = Date.now();
    entry.repairs = [...entry.repairs.filter((at) => at > now - REPAIR_WINDOW_MS), now];
    this.#log.error({ device: key }, `${key}: the command ring is unusable: ${reason}`);
    await disk.detach();
    await entry.backstore.block(true);
    if (entry.repairs.length > MAX_REPAIRS) {
      entry.problem = `its command ring is unusable: ${reason}`;
      this.#log.error(
        { device: key },
        `${key}: given up after ${MAX_REPAIRS} attempts; initiators are told to come again`,
      );
      return;
    }
    await entry.backstore.resetRing();
    disk.attach(entry.uio);
    await entry.backstore.block(false);
    this.#log.warn({ device: key }, `${key}: the command ring was emptied, and serves again`);
  }

  /** When repairing fails the device is opened anew, until that works. */
  #broken(entry: TcmuEntry, disk: TcmuDisk, reason: string): void {
    this.#inTurn(entry, () => this.#repair(entry, disk, reason)).catch(async (error: unknown) => {
      const { key } = entry.backstore;
      this.#log.error({ error, device: key }, `${key}: repairing its ring failed: ${describe(error)}`);
      if (entry.disk !== disk) return;
      entry.disk = undefined;
      await disk.close().catch(() => undefined);
      void this.#retryLater(entry, FIRST_RETRY_MS);
    });
  }

  /** The kernel removed the device, and we did not hear of it in time. */
  async #vanished(entry: TcmuEntry, disk: TcmuDisk): Promise<void> {
    if (entry.disk !== disk) return;
    this.#log.warn({ device: entry.backstore.key }, `${entry.backstore.key}: is gone`);
    await this.#forget(entry);
  }

  async #forget(entry: TcmuEntry): Promise<void> {
    entry.removed = true;
    if (this.#entries.get(entry.backstore.key) === entry) this.#entries.delete(entry.backstore.key);
    const { disk } = entry;
    entry.disk = undefined;
    try {
      await disk?.close();
    } catch (error) {
      this.#log.error({ error, device: entry.backstore.key }, `${entry.backstore.key}: closing: ${describe(error)}`);
    }
  }

  /** At the end of the daemon: the device stays, and waits for the next. */
  async #retire(entry: TcmuEntry): Promise<void> {
    const { disk, backstore } = entry;
    entry.disk = undefined;
    if (disk === undefined) return;
    await backstore.block(true).catch(() => false);
    try {
      await disk.close();
    } finally {
      await backstore.block(false).catch(() => false);
    }
  }
}
