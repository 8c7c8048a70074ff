import { invalidParameter } from './sense.ts';

/** Page control field of MODE SENSE. */
export const CURRENT = 0;
export const CHANGEABLE = 1;
export const DEFAULT = 2;
export const SAVED = 3;

/** A mode page of a kind of unit. */
export interface PageDefinition {
  readonly code: number;
  readonly defaults: readonly number[];
  /** Bits that MODE SELECT may change. */
  readonly changeable: readonly number[];
}

const READ_WRITE_ERROR_RECOVERY = 0x01;
const CACHING = 0x08;
const CONTROL = 0x0a;
const INFORMATIONAL_EXCEPTIONS = 0x1c;
const CAPABILITIES = 0x2a;

const WCE = 0x04; // caching, byte 2
const D_SENSE = 0x04; // control, byte 2
const SWP = 0x08; // control, byte 4
const TAS = 0x40; // control, byte 5

const RECOVERY_PAGE: PageDefinition = {
  code: READ_WRITE_ERROR_RECOVERY,
  defaults: [0x01, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  changeable: [0x01, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};
const CACHING_PAGE: PageDefinition = {
  code: CACHING,
  defaults: [0x08, 0x12, WCE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  changeable: [0x08, 0x12, WCE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};
const CONTROL_PAGE: PageDefinition = {
  code: CONTROL,
  // GLTSD: no log parameters are saved. BUSY TIMEOUT PERIOD ffff: unlimited.
  defaults: [0x0a, 0x0a, 0x02, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0],
  changeable: [0x0a, 0x0a, D_SENSE, 0, SWP, TAS, 0, 0, 0, 0, 0, 0],
};
const EXCEPTIONS_PAGE: PageDefinition = {
  code: INFORMATIONAL_EXCEPTIONS,
  // DEXCPT: no failure predictions.
  defaults: [0x1c, 0x0a, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  changeable: [0x1c, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};
const CAPABILITIES_PAGE: PageDefinition = {
  code: CAPABILITIES,
  // Reads CD-R, CD-RW, DVD-ROM, DVD-R; writes nothing; a tray that locks and ejects; 7056 kB/s, a buffer of 512 KiB.
  defaults: [0x2a, 0x14, 0x1b, 0, 0, 0, 0x29, 0, 0x1b, 0x90, 0, 0, 0x02, 0, 0x1b, 0x90, 0, 0, 0, 0, 0, 0],
  changeable: [0x2a, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

/** SBC-3 sections 6.5.8 and 6.5.5, SPC-4 sections 7.5.8 and 7.5.11; in the order in which page 3Fh returns them. */
export const DISK_PAGES: readonly PageDefinition[] = [RECOVERY_PAGE, CACHING_PAGE, CONTROL_PAGE, EXCEPTIONS_PAGE];
/** MMC-6 section 7. */
export const OPTICAL_PAGES: readonly PageDefinition[] = [
  RECOVERY_PAGE,
  CONTROL_PAGE,
  EXCEPTIONS_PAGE,
  CAPABILITIES_PAGE,
];

/**
 * The mode pages of one logical unit: shared by all nexuses, never saved.
 */
export class ModePages {
  readonly #definitions: readonly PageDefinition[];
  readonly #current = new Map<number, Uint8Array>();

  constructor(definitions: readonly PageDefinition[]) {
    this.#definitions = definitions;
    this.reset();
  }

  /** Back to the defaults, as after a reset. */
  reset(): void {
    for (const page of this.#definitions) this.#current.set(page.code, Uint8Array.from(page.defaults));
  }

  /** Write cache enable: without it every write is followed by a flush. */
  get writeCache(): boolean {
    return (this.#byte(CACHING, 2) & WCE) !== 0;
  }

  /** Sense data in descriptor format. */
  get descriptorSense(): boolean {
    return (this.#byte(CONTROL, 2) & D_SENSE) !== 0;
  }

  /** Software write protect. */
  get softwareWriteProtect(): boolean {
    return (this.#byte(CONTROL, 4) & SWP) !== 0;
  }

  /** Tasks that another nexus aborts end with TASK ABORTED. */
  get taskAbortedStatus(): boolean {
    return (this.#byte(CONTROL, 5) & TAS) !== 0;
  }

  /**
   * The pages for MODE SENSE, one after another.
   *
   * @param code a page, or 3Fh for all
   * @param control CURRENT, CHANGEABLE or DEFAULT
   * @returns undefined when there is no such page
   */
  read(code: number, subpage: number, control: number): Uint8Array | undefined {
    // No page has subpages here: FFh asks for the page and all its subpages.
    if (subpage !== 0 && subpage !== 0xff) return undefined;
    const pages = this.#definitions.filter((page) => code === 0x3f || page.code === code);
    if (pages.length === 0) return undefined;
    return Uint8Array.from(
      pages.flatMap((page) => {
        if (control === CHANGEABLE) return [...page.changeable];
        if (control === DEFAULT) return [...page.defaults];
        return [...(this.#current.get(page.code) as Uint8Array)];
      }),
    );
  }

  /**
   * Takes the pages of a MODE SELECT: all of them or none.
   *
   * @param list the parameter list, pages from byte `at` on
   * @returns whether anything changed
   * @throws {CheckCondition} INVALID FIELD IN PARAMETER LIST, also for a page that is cut
   */
  select(list: Uint8Array, at: number): boolean {
    const changes: { page: PageDefinition; bytes: Uint8Array }[] = [];
    while (at < list.length) {
      const code = (list[at] as number) & 0x3f;
      const page = this.#definitions.find((candidate) => candidate.code === code);
      if (page === undefined || ((list[at] as number) & 0x40) !== 0) throw invalidParameter(at);
      if (list[at + 1] !== page.defaults[1]) throw invalidParameter(at + 1);
      const bytes = list.subarray(at, at + page.defaults.length);
      if (bytes.length < page.defaults.length) throw invalidParameter(at + 1);
      const current = this.#current.get(code) as Uint8Array;
      for (let i = 2; i < bytes.length; i++) {
        const fixed = ~(page.changeable[i] as number) & 0xff;
        if ((((bytes[i] as number) ^ (current[i] as number)) & fixed) !== 0) throw invalidParameter(at + i);
      }
      changes.push({ page, bytes });
      at += bytes.length;
    }
    let changed = false;
    for (const { page, bytes } of changes) {
      const current = this.#current.get(page.code) as Uint8Array;
      for (let i = 2; i < bytes.length; i++) {
        if (current[i] !== bytes[i]) changed = true;
        current[i] = bytes[i] as number;
      }
    }
    return changed;
  }

  #byte(code: number, at: number): number {
    return this.#current.get(code)?.[at] ?? 0;
  }
}
