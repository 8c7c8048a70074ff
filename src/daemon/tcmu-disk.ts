import { codeOf, type ErrorCode, fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/image/image.ts';
import type { ChainImage, ImageHost } from '../../formats/index.ts';
import type { TcmuUio } from '../lio/uio-devices.ts';
import type { UserBackstore } from '../lio/user-backstore.ts';
import { ScsiDevice } from '../scsi/device.ts';
import type { Nexus } from '../scsi/task.ts';
import { TcmuDevice } from '../tcmu/device.ts';
import { identityBySerial, LIO_NAMES } from '../tcmu/identity.ts';
import { closeInOrder } from './close-in-order.ts';
import { CommandStatistics } from './command-statistics.ts';
import type { ServerLog } from './log.ts';
import { checkRequest, type OpenedExport, openExport } from './open-export.ts';
import { SettledImage } from './settled-image.ts';
import { requestOf, type TcmuRequest } from './tcmu-handlers.ts';
import type { TcmuKernel, UioDescriptors } from './tcmu-kernel.ts';

/** One command takes an eighth of the data area at most: so several fit, and none waits for ever. */
const SHARE_OF_DATA_AREA = 8;
const BLOCK_SIZES = [512, 4096] as const;
/** Of a disc, whatever the kernel was told. */
const OPTICAL_BLOCK_SIZE = 2048;

/** SPC-4's protocol identifier for "none of these". */
const NO_PROTOCOL = 0x0f;

/** The kernel does not say which initiator a command is from: all are one. Reservations, which need to know, it handles itself. */
const NEXUS: Nexus = { initiatorPort: 'lio', transportId: new Uint8Array(24), relativeTargetPort: 1, id: 0 };

/** Errors of ours as whoever makes a device gets them: the kernel carries an errno and no words. */
const ERRNO: Partial<Record<ErrorCode, number>> = {
  NOT_FOUND: -2,
  IO: -5,
  LOCKED: -16,
  ACCESS: -13,
  DENIED: -13,
  EXISTS: -17,
  INVALID: -22,
  NO_SPACE: -28,
  READ_ONLY: -30,
  UNSUPPORTED: -95,
  UNAVAILABLE: -19,
  TIMEOUT: -110,
};
const EIO = -5;

/** A negative errno for an error. */
export function errnoFor(error: unknown): number {
  return ERRNO[codeOf(error)] ?? EIO;
}

/** What the owner of a disk hears. */
export interface DiskEvents {
  /** The ring is unusable: attach() again after a reset of it. */
  broken(reason: string): void;
  /** The kernel has removed the device. */
  gone(): void;
}

/** A TCMU device with the image that it shows: opened, attached to its ring, served. */
export class TcmuDisk {
  readonly backstore: UserBackstore;
  readonly optical: boolean;
  readonly statistics = new CommandStatistics();
  #config: string;
  #opened: OpenedExport;
  #image: SettledImage;
  readonly #server: ScsiDevice;
  readonly #events: DiskEvents;
  readonly #blockSize: 512 | 4096;
  /** `dev_size` as the kernel has it, bytes. */
  #configuredSize: number;
  readonly #kernel: TcmuKernel;
  #ring: { readonly device: TcmuDevice; readonly fds: UioDescriptors } | undefined;

  private constructor(
    backstore: UserBackstore,
    config: string,
    kernel: TcmuKernel,
    opened: OpenedExport,
    unit: { blockSize: 512 | 4096; optical: boolean; configuredSize: number },
    events: DiskEvents,
  ) {
    this.backstore = backstore;
    this.#config = config;
    this.#kernel = kernel;
    this.optical = unit.optical;
    this.#opened = opened;
    this.#image = new SettledImage(opened.image);
    this.#blockSize = unit.blockSize;
    this.#configuredSize = unit.configuredSize;
    this.#events = events;
    // Ports belong to the kernel, and are not known here.
    this.#server = new ScsiDevice({ ports: [], protocol: NO_PROTOCOL, transportVersions: [] });
  }

  /**
   * Opens the image of a device.
   *
   * @throws {LunetteError} for what is wrong with the configuration, the image, or the size that the device was made with
   */
  static async open(
    host: ImageHost,
    uio: TcmuUio,
    log: ServerLog,
    kernel: TcmuKernel,
    events: DiskEvents,
  ): Promise<TcmuDisk> {
    const request = requestOf(uio.backstore.config);
    checkRequest(request);
    const backstore = kernel.backstore(uio.backstore);
    const { optical } = request;
    const wanted = (await backstore.attribute('hw_block_size')) ?? 512;
    const blockSize = optical ? 512 : BLOCK_SIZES.find((size) => size === wanted);
    const size = (await backstore.attribute('dev_size')) ?? 0;
    if (blockSize === undefined) {
      throw new LunetteError('INVALID', `blocks of ${wanted} bytes are not served`, {
        path: request.image,
        help: 'Make the backstore with hw_block_size=512 or hw_block_size=4096.',
      });
    }
    const opened = await openExport(host, request, log);
    try {
      if (optical) checkDisc(opened, request.image);
      else checkSize(opened.image.size, size, blockSize, request.image, log);
      return new TcmuDisk(
        backstore,
        uio.backstore.config,
        kernel,
        opened,
        { blockSize, optical, configuredSize: size },
        events,
      );
    } catch (error) {
      await opened.image.close().catch(() => undefined);
      throw error;
    }
  }

  /** As in dev_config; changes with the medium. */
  get config(): string {
    return this.#config;
  }

  get format(): string {
    return this.#opened.format;
  }

  get image(): Image {
    return this.#image;
  }

  /** The image as it is opened here, with its snapshots; undefined: another program opens it. */
  get chain(): ChainImage | undefined {
    return this.#opened.chain;
  }

  /** An initiator prevents the removal of the medium. */
  get mediumHeld(): boolean {
    return this.#server.unit(0)?.removalPrevented === true;
  }

  /** What is measured beside its commands. */
  get measures(): { readonly inFlight: number; readonly ringEvents: Readonly<Record<string, number>> } {
    const { malformed = 0, unknown = 0, taskManagement = 0, resets = 0 } = this.#ring?.device.counters ?? {};
    return { inFlight: this.inFlight, ringEvents: { malformed, unknown, 'task-management': taskManagement, resets } };
  }

  /** Commands that have been fetched and not completed. */
  get inFlight(): number {
    return this.#ring?.device.inFlight ?? 0;
  }

  /** Opens the device and begins to serve what is in its ring. @throws {LunetteError} LOCKED when another program has it open */
  attach(uio: TcmuUio): void {
    const fds = this.#kernel.open(uio);
    const { memoryFd, eventFd, kickFd } = fds;
    let device: TcmuDevice | undefined;
    try {
      device = new TcmuDevice({
        ...{ memoryFd, eventFd, kickFd },
        regionSize: uio.regionSize,
        server: this.#server,
        nexus: NEXUS,
        refreshNames: () => this.#refreshNames(),
        onBroken: (reason) => this.#events.broken(reason),
        onGone: () => this.#events.gone(),
      });
      if (this.#server.unit(0) === undefined) this.#addUnit(device.dataAreaSize);
      device.start();
      this.#ring = { device, fds };
    } catch (error) {
      // Its poll handle goes before its descriptor does.
      const closed = device?.close() ?? Promise.resolve();
      void closed.catch(() => undefined).then(() => fds.close());
      throw fromSystemError(error, 'mapping the device', { path: uio.node });
    }
  }

  /** Serves no more; what was fetched is finished first. The image stays open. Safe to call twice. */
  async detach(): Promise<void> {
    const ring = this.#ring;
    this.#ring = undefined;
    if (ring === undefined) return;
    await ring.device.close();
    ring.fds.close();
  }

  /** Detaches, flushes and closes the image. */
  close(): Promise<void> {
    return closeInOrder([() => this.detach(), () => this.#server.close(), () => this.#image.close()]);
  }

  /**
   * Puts another disc into the drive; commands that run finish on the old one.
   *
   * @param config as in dev_config
   * @throws {LunetteError} INVALID for a disk, LOCKED while an initiator keeps the disc in, and whatever opening the new one says
   */
  async changeMedium(host: ImageHost, config: string, log: ServerLog): Promise<void> {
    const unit = this.#server.unit(0);
    if (!this.optical || unit === undefined) {
      throw new LunetteError('INVALID', 'only the disc of an optical unit can be changed', { path: this.image.path });
    }
    const request: TcmuRequest = { ...requestOf(config), readOnly: true, overlay: undefined };
    const opened = await openExport(host, request, log);
    const image = new SettledImage(opened.image);
    let old: Image | undefined;
    try {
      checkDisc(opened, request.image);
      old = await unit.changeMedium(image);
    } catch (error) {
      await opened.image.close().catch(() => undefined);
      throw error;
    }
    this.#opened = opened;
    this.#image = image;
    this.#config = config;
    await old?.close();
  }

  /**
   * Another size, as the kernel is told to have. A disc has its own, and what is said already changes nothing: targetctl restore says
   * everything once more, also the size of a backstore that was made smaller than its disk.
   *
   * @throws {LunetteError} INVALID when the disk would become smaller
   */
  async resize(size: number): Promise<void> {
    if (this.optical || size === this.#configuredSize) return;
    await this.#resizeImage(size);
    this.#configuredSize = size;
  }

  async #resizeImage(size: number): Promise<void> {
    const image = this.#image;
    if (size <= image.size) {
      if (Math.floor(size / this.#blockSize) === Math.floor(image.size / this.#blockSize)) return;
      // All of the disk is served: what is more than before and less than that is there already.
      if (size > this.#configuredSize) return;
      throw new LunetteError('INVALID', `the disk has ${image.size} bytes: it is not made smaller while it is in use`, {
        path: image.path,
      });
    }
    await image.resize(size);
  }

  #addUnit(dataAreaSize: number): void {
    const page = 4096;
    const share = Math.max(page, Math.floor(dataAreaSize / SHARE_OF_DATA_AREA / page) * page);
    const unit = this.#server.addUnit(0, {
      image: this.#image,
      // Until LIO has given it a serial number.
      identity: `tcmu\0${this.backstore.key}\0${this.config}`,
      ...LIO_NAMES,
      blockSize: this.#blockSize,
      optical: this.optical,
      maxTransfer: share,
      observer: this.statistics.observe,
    });
    // So that it hears of what changes later; of its own beginning the kernel tells initiators itself.
    unit.attentions.of(NEXUS);
  }

  /** LIO names a unit after the device was made. */
  async #refreshNames(): Promise<void> {
    const unit = this.#server.unit(0);
    const serial = await this.backstore.unitSerial().catch(() => undefined);
    if (unit !== undefined && serial !== undefined && serial !== unit.identity.serial)
      unit.identity = identityBySerial(serial);
  }
}

function checkDisc({ image }: OpenedExport, path: string): void {
  if (image.size >= OPTICAL_BLOCK_SIZE) return;
  throw new LunetteError('INVALID', `${image.size} bytes are less than one block of a disc (${OPTICAL_BLOCK_SIZE})`, {
    path,
  });
}

function checkSize(actual: number, configured: number, blockSize: number, path: string, log: ServerLog): void {
  if (actual < blockSize) {
    throw new LunetteError('INVALID', `the disk has ${actual} bytes, less than one block of ${blockSize}`, { path });
  }
  if (Math.floor(actual / blockSize) === Math.floor(configured / blockSize)) return;
  if (configured > actual) {
    throw new LunetteError('INVALID', `the disk has ${actual} bytes, and its backstore was made for ${configured}`, {
      path,
      help: `Make the backstore with size=${actual}.`,
    });
  }
  // Cut off, a partition table at its end would be missing.
  log.warn(
    { image: path },
    `${path}: the backstore was made for ${configured} bytes; all ${actual} of the disk are served`,
  );
}
