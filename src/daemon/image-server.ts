import { realpathSync } from 'node:fs';
import { hostname } from 'node:os';
import path from 'node:path';
import { LunetteError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/image/image.ts';
import type { ImageHost } from '../../formats/index.ts';
import { nativeCrc32c } from '../io/native.ts';
import type { ChapCredentials } from '../iscsi/chap.ts';
import { formatAddress } from '../iscsi/names.ts';
import { Portal } from '../iscsi/portal.ts';
import { IscsiTarget } from '../iscsi/target.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { ScsiDevice } from '../scsi/device.ts';
import type { UnitIdentity } from '../scsi/identity.ts';
import { type Address, addressError, connectHost } from './address.ts';
import { closeInOrder, closeTogether } from './close-in-order.ts';
import { CommandStatistics } from './command-statistics.ts';
import { type LogFields, type ServerLog, SILENT } from './log.ts';
import type { IscsiSources, MeasuredUnit } from './metrics.ts';
import type { MetricsEndpoint } from './metrics-endpoint.ts';
import { nameOfFile, targetName, uniqueName } from './names.ts';
import { checkRequest, type ExportRequest, type OpenedExport, openExport } from './open-export.ts';
import { reservationStore } from './reservation-store.ts';

export interface ImageServerOptions extends Omit<HostOptions, 'warn'> {
  /** Opens the images, beside those of others in this process; it stays the caller's. Default: one of its own. */
  readonly host?: ImageHost | undefined;
  /** What is served from the beginning: add() and remove() change it. */
  readonly exports: readonly ExportRequest[];
  /** Where the iSCSI portal listens. Port 0 picks a free one. */
  readonly listen: Address;
  /** Name of the target: a whole iSCSI name, or what stands behind our prefix. Default: from the file's name. One target only. */
  readonly name?: string | undefined;
  /** The images are LUN 0, 1, 2… of one target, instead of LUN 0 of one each. */
  readonly oneTarget?: boolean | undefined;
  /** What initiators must prove; absent: nothing. */
  readonly chap?: ChapCredentials | undefined;
  /** What we prove to initiators that ask. */
  readonly mutualChap?: ChapCredentials | undefined;
  /** Names of initiators that may log in; absent: anybody. */
  readonly allowedInitiators?: readonly string[] | undefined;
  /** Size of a logical block, bytes. Default 512. */
  readonly blockSize?: 512 | 4096 | undefined;
  readonly removable?: boolean | undefined;
  /** The units are CD or DVD drives with the images as discs, which are only read. */
  readonly optical?: boolean | undefined;
  /** Directory for persistent reservations; made when the first one is kept. Absent: none are kept over restarts. */
  readonly stateDirectory?: string | undefined;
  /** Commands are counted, for images[].statistics. Default: if there are metrics. */
  readonly measured?: boolean | undefined;
  /** Where Prometheus metrics are served over HTTP. */
  readonly metrics?: Address | undefined;
  readonly log?: ServerLog | undefined;
}

/** An image that is being served. */
export interface ServedImage {
  /** As it was asked for. */
  readonly request: ExportRequest;
  /** `iscsi://HOST:PORT/TARGET/LUN`, as libiscsi and QEMU take it. */
  readonly url: string;
  readonly target: string;
  readonly lun: number;
  /** Format of the file that was named. */
  readonly format: string;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
}

/** The inside of what is served, for whoever looks after it. */
export interface ServedUnit {
  readonly opened: OpenedExport;
  readonly statistics: CommandStatistics;
  /** Sessions of its target now. */
  readonly sessions: number;
}

/** What opening images takes. */
interface Opener {
  readonly host: ImageHost;
  readonly options: ImageServerOptions;
  readonly log: ServerLog;
  /** Last parts of names that targets have. */
  readonly taken: Set<string>;
}

interface Unit extends MeasuredUnit {
  readonly request: ExportRequest;
  readonly opened: OpenedExport;
}

/** A target device with what is on it. */
interface Served {
  /** As it is in the opener's `taken`. */
  readonly name: string;
  readonly target: IscsiTarget;
  readonly device: ScsiDevice;
  readonly units: readonly Unit[];
}

/**
 * Serves images over iSCSI: opens them, makes logical units and targets of them, listens.
 *
 *     const server = await ImageServer.start({ exports: [{ image: 'disk.qcow2' }], listen: { host: '127.0.0.1', port: 0 } });
 *     console.log(server.images[0].url);
 *     …
 *     await server.close();
 */
export class ImageServer {
  readonly #opener: Opener;
  readonly #served: Served[];
  readonly #portal: Portal;
  readonly #metrics: MetricsEndpoint | undefined;
  #closing: Promise<void> | undefined;

  private constructor(opener: Opener, served: Served[], portal: Portal, metrics: MetricsEndpoint | undefined) {
    this.#opener = opener;
    this.#served = served;
    this.#portal = portal;
    this.#metrics = metrics;
  }

  /** What is served now. */
  get images(): readonly ServedImage[] {
    return this.#served.flatMap((served) => this.#imagesOf(served));
  }

  #imagesOf({ units }: Served): ServedImage[] {
    const { port } = this.#portal.address;
    const authority = formatAddress(connectHost(this.#portal.address.host), port);
    return units.map((unit) => ({
      request: unit.request,
      url: `iscsi://${authority}/${unit.target}/${unit.lun}`,
      target: unit.target,
      lun: unit.lun,
      format: unit.opened.format,
      size: unit.opened.image.size,
      readOnly: unit.opened.image.readOnly,
    }));
  }

  /** What is open for a target. */
  unitsOf(target: string): readonly ServedUnit[] {
    const served = this.#served.find(({ target: { name } }) => name === target);
    const sessions = served?.target.sessions.size ?? 0;
    return served?.units.map(({ opened, statistics }) => ({ opened, statistics, sessions })) ?? [];
  }

  /**
   * Opens the images and listens. When one image fails, none is served.
   *
   * @throws {LunetteError} what opening an image throws; INVALID for options that contradict each other; EXISTS when the port is taken
   */
  static async start(options: ImageServerOptions): Promise<ImageServer> {
    const log = options.log ?? SILENT;
    // A daemon begins with none.
    if (options.exports.length > 0) checkServerOptions(options);
    const warn = (message: string, image: string): void => log.warn({ image }, `${image}: ${message}`);
    const host = options.host ?? createHost({ ...options, warn });
    const opener: Opener = { host, options, log, taken: new Set() };
    const undo: (() => Promise<void>)[] = [async () => (options.host === undefined ? host.close() : undefined)];
    try {
      const served: Served[] = [];
      undo.push(() => closeTogether(imagesOf(served)));
      for (const requests of grouped(options)) served.push(await openTarget(opener, requests));
      undo.push(() => closeDevices(served));
      const portal = new Portal({
        listen: options.listen,
        targets: served.map(({ target }) => target),
        ...(nativeCrc32c === undefined ? {} : { crc32c: nativeCrc32c }),
        log: portalLog(log),
      });
      await portal.listen().catch((error: unknown) => {
        const cause = error instanceof LunetteError ? (error.cause ?? error) : error;
        throw addressError(cause, options.listen, '--listen');
      });
      undo.push(() => portal.close({ graceMs: 0 }));
      const metrics = await startMetrics(options, host, portal, served);
      return new ImageServer(opener, served, portal, metrics);
    } catch (error) {
      for (const step of undo.reverse()) await step().catch(() => undefined);
      throw error;
    }
  }

  /** Serves one image more, in a target of its own. @throws {LunetteError} what opening it throws; CLOSED */
  async add(request: ExportRequest): Promise<ServedImage> {
    if (this.#closing !== undefined) throw new LunetteError('CLOSED', 'the server is closed');
    checkRequest(request);
    const served = await openTarget(this.#opener, [request]);
    try {
      this.#portal.addTarget(served.target);
    } catch (error) {
      this.#opener.taken.delete(served.name);
      await closeInOrder([() => served.device.close(), () => closeTogether(imagesOf([served]))]).catch(() => undefined);
      throw error;
    }
    this.#served.push(served);
    return this.#imagesOf(served)[0] as ServedImage;
  }

  /**
   * Serves a target no longer: its initiators are asked to log out, what is in flight is finished within `graceMs` (default 5000), its images
   * are flushed and closed. Those of other targets do not notice.
   */
  async remove(target: string, { graceMs = 5000 }: { graceMs?: number } = {}): Promise<void> {
    const served = this.#served.find(({ target: { name } }) => name === target);
    if (served === undefined) return;
    this.#served.splice(this.#served.indexOf(served), 1);
    this.#opener.taken.delete(served.name);
    await closeInOrder([
      () => this.#portal.removeTarget(target, { graceMs }),
      () => served.device.close(),
      () => closeTogether(imagesOf([served])),
    ]);
  }

  /** Where the portal listens, with the port that was picked. */
  get address(): Address {
    return this.#portal.address;
  }

  /** Where metrics are served. */
  get metricsAddress(): Address | undefined {
    return this.#metrics?.address;
  }

  /** What initiators know the units by, in the order of `images`. */
  get identities(): readonly UnitIdentity[] {
    return this.#served.flatMap(({ device }) => device.units().map((unit) => unit.identity));
  }

  /** Sessions that are logged in now. */
  get sessions(): number {
    return this.#portal.counters.sessions;
  }

  /** What is measured of it. */
  get sources(): IscsiSources {
    return sourcesOf(this.#portal, this.#served);
  }

  /**
   * Stops accepting, asks initiators to log out, finishes what is in flight within `graceMs` (default 5000), then flushes and closes the
   * images. Safe to call twice.
   *
   * @throws {LunetteError} when an image could not be flushed or closed
   */
  close({ graceMs = 5000 }: { graceMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(graceMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #close(graceMs: number): Promise<void> {
    // The guard of a probed image has writes of its own to wait for; the host closes what is below.
    const { host, options } = this.#opener;
    return closeInOrder([
      () => this.#portal.close({ graceMs }),
      () => closeDevices(this.#served),
      () => closeTogether(imagesOf(this.#served)),
      () => (options.host === undefined ? host.close() : undefined),
      () => this.#metrics?.close(),
    ]);
  }
}

/**
 * Checks what can be checked without touching an image.
 *
 * @throws {LunetteError} INVALID for options that contradict each other and names that cannot be
 */
export function checkServerOptions(options: ImageServerOptions): void {
  const { exports, oneTarget } = options;
  if (exports.length === 0) throw new LunetteError('INVALID', 'there is no image to serve');
  for (const request of exports) checkRequest(request);
  if (options.name !== undefined) targetName(options.name);
  if (options.name !== undefined && exports.length > 1 && oneTarget !== true) {
    throw new LunetteError('INVALID', 'one name is not enough for several targets', {
      help: 'Leave the name out, or put the images into one target: --one-target.',
    });
  }
}

/** The images of each target. */
function grouped({ exports, oneTarget }: ImageServerOptions): (readonly ExportRequest[])[] {
  if (exports.length === 0) return [];
  return oneTarget === true ? [exports] : exports.map((request) => [request]);
}

async function openTarget(opener: Opener, requests: readonly ExportRequest[]): Promise<Served> {
  const { options, taken } = opener;
  const first = requests[0] as ExportRequest;
  const short = options.name ?? uniqueName(first.name ?? nameOfFile(first.image), taken);
  const name = targetName(short);
  const device = new ScsiDevice({ name, ports: [{ id: 1, name: `${name},t,0x0001` }] });
  const units: Unit[] = [];
  try {
    const target = new IscsiTarget({
      name,
      alias: requests.length === 1 ? path.basename(first.image).slice(0, 80) : undefined,
      device,
      chap: options.chap,
      mutualChap: options.mutualChap,
      allowedInitiators: options.allowedInitiators,
    });
    for (const request of requests) units.push(await addUnit(opener, device, name, units.length, request));
    return { name: short, target, device, units };
  } catch (error) {
    taken.delete(short);
    await device.close().catch(() => undefined);
    await closeTogether(units.map(({ opened }) => opened.image)).catch(() => undefined);
    throw error;
  }
}

function imagesOf(served: readonly Served[]): Image[] {
  return served.flatMap(({ units }) => units.map(({ opened }) => opened.image));
}

async function addUnit(
  { host, options, log }: Opener,
  device: ScsiDevice,
  target: string,
  lun: number,
  request: ExportRequest,
): Promise<Unit> {
  const optical = request.optical ?? options.optical ?? false;
  const units = request.blockSize ?? options.blockSize;
  const opened = await openExport(host, optical ? { ...request, readOnly: true } : request, log);
  try {
    const { image } = opened;
    const blockSize = optical ? 2048 : (units ?? 512);
    checkSize(image, request.image, blockSize, log);
    const identity = identityOf(target, lun, request);
    const statistics = new CommandStatistics();
    device.addUnit(lun, {
      image,
      identity,
      blockSize: units,
      removable: options.removable,
      optical,
      readOnly: request.readOnly,
      reservationStore:
        options.stateDirectory === undefined
          ? undefined
          : await reservationStore(options.stateDirectory, nameOfFile(request.image), identity),
      observer: options.measured === true || options.metrics !== undefined ? statistics.observe : undefined,
    });
    return { request, opened, target, lun, statistics };
  } catch (error) {
    await opened.image.close().catch(() => undefined);
    throw error;
  }
}

function checkSize(image: Image, name: string, blockSize: number, log: ServerLog): void {
  if (image.size < blockSize) {
    throw new LunetteError('INVALID', `the disk has ${image.size} bytes, less than one block of ${blockSize}`, {
      path: name,
    });
  }
  const rest = image.size % blockSize;
  if (rest !== 0)
    log.warn({ image: name }, `${name}: its last ${rest} bytes are less than a block and not visible to initiators`);
}

/**
 * What a unit's serial number and designators are made from. The same after a restart; never the same for two disks: an initiator
 * that sees one designator twice takes it for two paths to one disk. So the machine's name is in it: target names of two machines
 * are often the same.
 */
function identityOf(target: string, lun: number, request: ExportRequest): string {
  const file = request.overlay ?? request.image;
  return [hostname(), realPath(file), request.snapshot ?? '', target, lun].join('\0');
}

function realPath(image: string): string {
  // The bridge's name of a format is no part of a path; a URL is the same from every directory.
  const [prefix = '', file = image] = /^(qemu:(?!json:)[a-z0-9-]+:)(.*)$/is.exec(image)?.slice(1) ?? [];
  if (prefix !== '') return prefix + realPath(file);
  if (/^(qemu|https?|nbds?(\+\w+)?):/i.test(image)) return image;
  try {
    return realpathSync(file);
  } catch {
    return path.resolve(file);
  }
}

async function startMetrics(
  options: ImageServerOptions,
  host: ImageHost,
  portal: Portal,
  served: readonly Served[],
): Promise<MetricsEndpoint | undefined> {
  if (options.metrics === undefined) return undefined;
  // Loaded only when asked for: most exports are not measured, and it takes memory.
  const [{ Metrics }, { MetricsEndpoint }] = await Promise.all([
    import('./metrics.ts'),
    import('./metrics-endpoint.ts'),
  ]);
  const metrics = new Metrics({ iscsi: sourcesOf(portal, served), cache: () => host.cache.stats });
  return MetricsEndpoint.listen(options.metrics, metrics);
}

function sourcesOf(portal: Portal, served: readonly Served[]): IscsiSources {
  return {
    units: () => served.flatMap(({ units }) => units),
    sessions: () => new Map(served.map(({ target }) => [target.name, target.sessions.size])),
    counters: () => portal.counters,
  };
}

async function closeDevices(served: readonly Served[]): Promise<void> {
  await Promise.all(served.map(({ device }) => device.close()));
}

/** The portal's events with their fields in the text, so that a person sees them too. */
function portalLog(log: ServerLog): { info: typeof log.info; warn: typeof log.warn } {
  const text = (fields: LogFields, message: string): string => {
    const known = Object.entries(fields).filter(([, value]) => value !== undefined);
    return known.length === 0 ? message : `${message} (${known.map(([key, value]) => `${key} ${value}`).join(', ')})`;
  };
  return {
    info: (fields, message) => log.info(fields, text(fields, message)),
    warn: (fields, message) => log.warn(fields, text(fields, message)),
  };
}
