import { read16, write16, write32 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

const CD_ROM = 0x0008;
const DVD_ROM = 0x0010;

/** More blocks than the longest CD has (99 minutes): the disc is a DVD then. */
const MOST_CD_BLOCKS = 99 * 60 * 75;

/** The disc is a DVD by its size. */
export function isDvd(unit: LogicalUnit): boolean {
  return unit.blocks > MOST_CD_BLOCKS;
}

interface Feature {
  readonly code: number;
  readonly version: number;
  readonly persistent: boolean;
  current(unit: LogicalUnit): boolean;
  data(unit: LogicalUnit): readonly number[];
}

const always = (): boolean => true;
const withMedium = (unit: LogicalUnit): boolean => unit.mediumPresent;
const nothing = (): readonly number[] => [];

/** MMC-6 section 5.3, by feature code. */
const FEATURES: readonly Feature[] = [
  {
    code: 0x0000, // profile list
    version: 0,
    persistent: true,
    current: always,
    data: (unit) => {
      const current = currentProfile(unit);
      return [DVD_ROM, CD_ROM].flatMap((profile) => [profile >> 8, profile & 0xff, profile === current ? 1 : 0, 0]);
    },
  },
  // Core: SCSI family; INQ2, DBE.
  { code: 0x0001, version: 2, persistent: true, current: always, data: () => [0, 0, 0, 1, 0x03, 0, 0, 0] },
  // Morphing: no asynchronous events; operational changes are none.
  { code: 0x0002, version: 1, persistent: true, current: always, data: () => [0x02, 0, 0, 0] },
  // Removable medium: a tray that locks, ejects and loads.
  { code: 0x0003, version: 2, persistent: true, current: always, data: () => [0x39, 0, 0, 0] },
  // Random readable: blocks of 2048 bytes, one at a time.
  { code: 0x0010, version: 0, persistent: false, current: withMedium, data: () => [0, 0, 0x08, 0, 0, 1, 0, 0] },
  { code: 0x001d, version: 0, persistent: false, current: withMedium, data: nothing }, // multi-read
  {
    code: 0x001e,
    version: 2,
    persistent: false,
    current: (unit) => currentProfile(unit) === CD_ROM,
    data: () => [0, 0, 0, 0],
  },
  {
    code: 0x001f,
    version: 1,
    persistent: false,
    current: (unit) => currentProfile(unit) === DVD_ROM,
    data: () => [0x01, 0, 0, 0],
  },
  { code: 0x0100, version: 0, persistent: true, current: always, data: nothing }, // power management
  { code: 0x0105, version: 1, persistent: true, current: always, data: () => [0, 0, 0, 0] }, // timeout
];

function currentProfile(unit: LogicalUnit): number {
  if (!unit.mediumPresent) return 0;
  return isDvd(unit) ? DVD_ROM : CD_ROM;
}

/** GET CONFIGURATION (MMC-6 section 6.6): all features, those that are current, or one. */
export function getConfiguration(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  const which = (cdb[1] as number) & 0x03; // RT
  const from = read16(cdb, 2);
  if (which === 3) throw invalidField(1, 1);
  const features = FEATURES.filter((feature) => {
    if (which === 2) return feature.code === from;
    return feature.code >= from && (which === 0 || feature.current(unit));
  });
  const data = Buffer.concat([new Uint8Array(8), ...features.map((feature) => describe(feature, unit))]);
  write32(data, 0, data.length - 4);
  write16(data, 6, currentProfile(unit));
  return respond(task, data, read16(cdb, 7));
}

function describe(feature: Feature, unit: LogicalUnit): Uint8Array {
  const body = feature.data(unit);
  const flags = (feature.version << 2) | (feature.persistent ? 0x02 : 0) | (feature.current(unit) ? 0x01 : 0);
  return Uint8Array.of(feature.code >> 8, feature.code & 0xff, flags, body.length, ...body);
}
