import { LunetteError } from '../../formats/core/errors.ts';
import type { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/image/image.ts';
import { Attentions, EJECT_REQUEST, MEDIA_REMOVAL, NEW_MEDIA } from './attention.ts';
import type { CommandObserver } from './command.ts';
import { deriveIdentity, type IdentityOptions, type UnitIdentity } from './identity.ts';
import { DISK_PAGES, ModePages, OPTICAL_PAGES } from './mode-pages.ts';
import type { ReservationStore } from './reservation-state.ts';
import { Reservations } from './reservations.ts';
import { CAPACITY_CHANGED, type CheckCondition, DEFERRED, MEDIUM_MAY_HAVE_CHANGED, writeSense } from './sense.ts';
import type { Nexus, ScsiTask } from './task.ts';
import { CHECK_CONDITION } from './task.ts';
import { TaskSet } from './task-set.ts';

/** What a unit has, as bits: commands that need one are unknown opcodes where it is missing. */
export const REMOVABLE = 1;
export const THIN = 2;
export const FIXED = 4;
/** A direct access block device (SBC). */
export const DISK = 8;
/** A CD or DVD drive (MMC). */
export const OPTICAL = 16;

/** The longest transfer of one command, bytes: MAXIMUM TRANSFER LENGTH of VPD page B0h. */
export const MAX_TRANSFER = 32 * 1024 * 1024;
/** Bytes in a sector of CD-ROM mode 1 and of a DVD. */
const OPTICAL_BLOCK_SIZE = 2048;

/** A port of the target device. */
export interface TargetPort {
  /** Relative target port identifier, 1 and up. */
  readonly id: number;
  /** SCSI name string of the port, e.g. `iqn.2026-11.lunette.host:disk,t,0x0001`. */
  readonly name: string;
}

/** What a unit knows of the target device that it is part of. */
export interface Surroundings {
  /** SCSI name string of the target device; undefined where the transport has none. */
  readonly name: string | undefined;
  readonly ports: readonly TargetPort[];
  /** SPC-4 protocol identifier: 5 for iSCSI. */
  readonly protocol: number;
  /** Version descriptors of the transport, for INQUIRY. */
  readonly transportVersions: readonly number[];
  /** Logical unit numbers, ascending. */
  luns(): number[];
  /** The unit that an NAA designator names; for EXTENDED COPY. */
  unitByNaa(designator: Uint8Array): LogicalUnit | undefined;
  /** REPORT LUNS has told this nexus about the set of units. */
  lunsReported(nexus: Nexus): void;
}

export interface UnitOptions extends IdentityOptions {
  image: Image;
  /** Unique per unit and stable over restarts; serial number and designators are derived from it by hash. */
  identity: string;
  /** A CD or DVD drive with the image as its disc: removable, read-only, blocks of 2048 bytes. Default: a disk. */
  optical?: boolean | undefined;
  /** Logical block size, bytes. Default 512; an optical unit has 2048. */
  blockSize?: 512 | 4096 | undefined;
  /**
   * Physical block size that READ CAPACITY(16) reports, bytes. Default: the logical one. The natural size of small writes is said by the
   * OPTIMAL TRANSFER LENGTH GRANULARITY instead, which initiators heed as well.
   */
  physicalBlockSize?: number | undefined;
  /** Refuse writes even if the image would take them. */
  readOnly?: boolean | undefined;
  /** A medium that can be ejected and loaded. */
  removable?: boolean | undefined;
  /** Where persistent reservations with APTPL are kept; without it APTPL is refused. */
  reservationStore?: ReservationStore | undefined;
  /** The longest transfer of one command, bytes: a multiple of the block size, at most MAX_TRANSFER, which is the default. */
  maxTransfer?: number | undefined;
  /** Called once per completed command. */
  observer?: CommandObserver | undefined;
}

/** A SANITIZE that runs, or the last one if it failed. */
export interface SanitizeState {
  running: boolean;
  failed: boolean;
  /** AUSE: EXIT FAILURE MODE ends the failure. */
  unrestricted: boolean;
  /** 0 to 65535. */
  progress: number;
}

/** Runs a task on a unit: undefined when it has completed, else a promise that never rejects. */
export type StartTask = (unit: LogicalUnit, task: ScsiTask) => Promise<void> | undefined;

/** A copy that EXTENDED COPY has finished, for RECEIVE COPY RESULTS. */
export interface CopyResult {
  readonly nexusId: number;
  readonly listId: number;
  readonly failed: boolean;
  readonly segments: number;
  readonly bytes: number;
  /** When, of performance.now(). */
  readonly ended: number;
}

/**
 * State of one logical unit: the image under it, what it is called, mode pages, reservations, attentions. The commands are functions
 * over it in files of their own; dispatch.ts runs them.
 */
export class LogicalUnit {
  readonly lun: number;
  /** Replaced where whoever names the unit does so after it was made. */
  identity: UnitIdentity;
  readonly blockSize: number;
  /** Logical blocks per physical block, as a power of two. */
  readonly physicalExponent: number;
  readonly surroundings: Surroundings;
  readonly attentions = new Attentions();
  readonly modePages: ModePages;
  readonly reservations: Reservations;
  readonly observer: CommandObserver | undefined;
  readonly tasks: TaskSet;
  /** Copies that have ended, newest last. */
  readonly copyResults: CopyResult[] = [];
  readonly sanitize: SanitizeState = { running: false, failed: false, unrestricted: false, progress: 0 };
  /** The medium; changes with changeMedium. Closed or not, the last one stays here while there is none. */
  image: Image;
  /** REMOVABLE, THIN and so on: what commands may need. */
  features: number;
  /** Capacity, logical blocks; what is left of the image behind a whole number of blocks is not visible. */
  blocks: number;
  mediumPresent = true;
  /** Commands that need the medium may run: it is there, and not being sanitized. One test per command. */
  ready = true;
  /** For any reason: the image, the export, SWP. */
  writeProtected = false;
  /** Every write is followed by a flush (WCE is 0). */
  writeThrough = false;

  /** The longest transfer of one command. */
  readonly maxTransferBlocks: number;
  readonly #readOnly: boolean;
  readonly #background = new Set<Promise<void>>();
  #endResize: () => void = () => undefined;
  /** There is a medium to load. */
  #hasMedium = true;
  #changing = false;

  /** @param start runs one task: see TaskSet */
  constructor(lun: number, options: UnitOptions, surroundings: Surroundings, start: StartTask) {
    const optical = options.optical === true;
    this.lun = lun;
    this.image = options.image;
    this.blockSize = optical ? OPTICAL_BLOCK_SIZE : (options.blockSize ?? 512);
    this.surroundings = surroundings;
    this.identity = deriveIdentity(options.identity, optical ? { product: 'VIRTUAL DVD-ROM', ...options } : options);
    this.observer = options.observer;
    this.features = optical ? OPTICAL | REMOVABLE : DISK | (options.removable === true ? REMOVABLE : FIXED);
    this.modePages = new ModePages(optical ? OPTICAL_PAGES : DISK_PAGES);
    this.tasks = new TaskSet((task) => start(this, task));
    this.reservations = new Reservations(this.attentions, options.reservationStore);
    this.blocks = 0;
    const { maxTransfer = MAX_TRANSFER } = options;
    this.maxTransferBlocks = Math.floor(Math.min(maxTransfer, MAX_TRANSFER) / this.blockSize);
    this.#readOnly = options.readOnly === true || optical;
    const { physicalBlockSize = this.blockSize } = options;
    this.physicalExponent = Math.max(0, Math.floor(Math.log2(physicalBlockSize / this.blockSize)));
    this.#insert(options.image);
  }

  get removable(): boolean {
    return (this.features & REMOVABLE) !== 0;
  }

  get optical(): boolean {
    return (this.features & OPTICAL) !== 0;
  }

  /** UNMAP and its kin give space back. */
  get thin(): boolean {
    return (this.features & THIN) !== 0;
  }

  /** Derives what is asked per command from the mode pages. */
  modeChanged(): void {
    this.writeThrough = !this.modePages.writeCache;
    this.writeProtected = this.#readOnly || this.image.readOnly || this.modePages.softwareWriteProtect;
  }

  /** Derives `ready`: call after a change of mediumPresent or sanitize. */
  readinessChanged(): void {
    this.ready = this.mediumPresent && !this.sanitize.running && !this.sanitize.failed;
  }

  /** Some nexus holds the medium in with PREVENT ALLOW MEDIUM REMOVAL. */
  get removalPrevented(): boolean {
    for (const state of this.attentions.states()) if (state.preventsRemoval) return true;
    return false;
  }

  /** Takes the medium out; with a load it is back. */
  eject(): void {
    this.mediumPresent = false;
    this.readinessChanged();
    this.attentions.mediaEvent(MEDIA_REMOVAL);
  }

  /** Puts the medium in; every nexus is told, but for the one that did it. @returns false: there is none */
  load(by?: Nexus): boolean {
    if (this.mediumPresent) return true;
    if (!this.#hasMedium) return false;
    this.mediumPresent = true;
    this.readinessChanged();
    this.attentions.raiseAll(MEDIUM_MAY_HAVE_CHANGED, by);
    this.attentions.mediaEvent(NEW_MEDIA);
    return true;
  }

  /**
   * Exchanges the medium of a removable unit: commands that run are waited for, further ones find no medium until the new one is in.
   *
   * @param image the new medium, not closed by the unit; undefined leaves the drive empty
   * @param force although an initiator prevents its removal
   * @returns the medium that was in, for the caller to close; undefined: there was none
   * @throws {LunetteError} LOCKED when an initiator prevents its removal: it is told that somebody wants it out; INVALID for a fixed unit
   */
  async changeMedium(image: Image | undefined, force = false): Promise<Image | undefined> {
    if (!this.removable) throw new LunetteError('INVALID', 'the unit has no removable medium');
    if (this.#changing) throw new LunetteError('LOCKED', 'the medium is being changed already');
    if (this.removalPrevented && !force) {
      this.attentions.mediaEvent(EJECT_REQUEST);
      throw new LunetteError('LOCKED', 'an initiator prevents the removal of the medium', {
        help: 'Unmount the medium there first.',
      });
    }
    this.#changing = true;
    try {
      const old = this.#hasMedium ? this.image : undefined;
      this.#hasMedium = false;
      if (this.mediumPresent) this.eject();
      await this.tasks.drain();
      await Promise.all(this.#background);
      this.#endResize();
      this.#endResize = () => undefined;
      for (const state of this.attentions.states()) state.preventsRemoval = false;
      if (image !== undefined) {
        this.#insert(image);
        this.#hasMedium = true;
        this.load();
      }
      return old;
    } finally {
      this.#changing = false;
    }
  }

  #insert(image: Image): void {
    this.image = image;
    const blocksOf = (size: number): number => Math.floor(size / this.blockSize);
    this.blocks = blocksOf(image.size);
    const thin = !this.optical && image.limits.discardUnit > 0;
    this.features = (this.features & ~THIN) | (thin ? THIN : 0);
    this.#endResize = image.onResize((size) => {
      if (blocksOf(size) === this.blocks) return;
      this.blocks = blocksOf(size);
      this.attentions.raiseAll(CAPACITY_CHANGED);
    });
    this.modeChanged();
  }

  /** What a reset does to the unit besides aborting tasks. */
  reset(attention: number): void {
    this.reservations.release6();
    this.modePages.reset();
    this.modeChanged();
    for (const state of this.attentions.states()) state.preventsRemoval = false;
    this.attentions.raiseAll(attention);
  }

  /** Ends a task with CHECK CONDITION. */
  fail(task: ScsiTask, check: CheckCondition): void {
    this.failWith(task, check.sense, check.details);
  }

  failWith(task: ScsiTask, sense: number, details?: CheckCondition['details']): void {
    task.status = CHECK_CONDITION;
    task.senseLength = writeSense(task.sense, sense, this.modePages.descriptorSense, details);
    task.dataInUsed = 0;
    if (task.dataOutLength === 0) task.transferLength = 0;
  }

  /** Runs work whose command has ended already (IMMED); a failure reaches the nexus as a deferred error. */
  inBackground(nexus: Nexus, work: Promise<void>, senseOf: (error: unknown) => number): void {
    const tracked: Promise<void> = work
      .catch((error: unknown) => this.attentions.raise(nexus, senseOf(error) + DEFERRED))
      .finally(() => this.#background.delete(tracked));
    this.#background.add(tracked);
  }

  /** Resolves when work in the background has ended; the image stays open. */
  async close(): Promise<void> {
    this.#endResize();
    await Promise.all(this.#background);
  }
}

/**
 * Returns parameter data: as much of it as the allocation length and the transport's buffer take.
 */
export function respond(task: ScsiTask, data: Uint8Array, allocationLength: number): undefined {
  task.transferLength = Math.min(data.length, allocationLength);
  const room = Math.min(task.transferLength, task.dataIn.byteLength);
  task.dataInUsed = room;
  if (room > 0) task.dataIn.copyIn(0, room === data.length ? data : data.subarray(0, room));
  return undefined;
}

/** The first `length` bytes of a list: the list itself when it is not longer. */
export function atMost(iov: IoVec, length: number): IoVec {
  return iov.byteLength <= length ? iov : iov.slice(0, length);
}
