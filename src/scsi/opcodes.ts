import { type Access, FREE, READS, WRITES } from './access.ts';
import { readCapacity10, readCapacity16 } from './capacity.ts';
import {
  BLOCKS_IN,
  BLOCKS_OUT,
  COUNTED_OUT,
  type Command,
  type DataForm,
  type Handler,
  NO_DATA,
  PARAMETER_IN,
  PARAMETER_OUT,
} from './command.ts';
import { compareAndWrite, compareAndWriteBlocksOut, orWrite } from './compare.ts';
import { getConfiguration } from './configuration.ts';
import { copyOperatingParameters, copyStatus, extendedCopy } from './copy.ts';
import { mechanismStatus, readDiscInformation, readDiscStructure, readTrackInformation } from './disc.ts';
import { getEventStatusNotification } from './event-status.ts';
import { inquiry } from './inquiry.ts';
import { modeSelect6, modeSelect10, modeSense6, modeSense10 } from './mode.ts';
import {
  persistentReserveOut,
  readFullStatus,
  readKeys,
  readReservation,
  reportCapabilities,
} from './persistent-reserve.ts';
import { getLbaStatus, unmap, writeSame10, writeSame16, writeSameBlocksOut } from './provisioning.ts';
import { read6, read10, read12, read16Command, write6, write10, write12, write16Command } from './read-write.ts';
import { preventAllowMediumRemoval, preventField, startStopUnit } from './removable.ts';
import {
  readDefectData10,
  readDefectData12,
  reportSupportedOpcodes,
  reportSupportedTaskManagement,
  testUnitReady,
} from './report.ts';
import { reportLuns } from './report-luns.ts';
import { requestSense } from './request-sense.ts';
import { release, reserve } from './reserve.ts';
import { exitFailureMode, sanitizeBlockErase } from './sanitize.ts';
import { prefetch10, prefetch16, synchronizeCache10, synchronizeCache16 } from './synchronize.ts';
import { reportTargetPortGroups } from './target-port-groups.ts';
import { readToc } from './toc.ts';
import { DISK, OPTICAL, REMOVABLE, THIN } from './unit.ts';
import { verify, verifyBlocksOut, writeAndVerify } from './verify.ts';

/** What most commands are not. */
interface Traits {
  accessOf?: (cdb: Uint8Array) => Access;
  free6?: true;
  /** Works without a medium. */
  mediumless?: true;
  passesAttention?: true;
  needs?: number;
  blocksOut?: (cdb: Uint8Array) => number;
}

/**
 * One row of the table.
 *
 * @param usage CDB usage data in hexadecimal: opcode (and service action), then the bits that are evaluated
 * @param data how long its data is: form, then where the length field is and its size
 * @param access what it does to the medium, as reservations and write protection see it
 */
function row(
  name: string,
  usage: string,
  data: readonly [DataForm, number?, number?],
  access: Access,
  run: Handler,
  traits: Traits = {},
  modifies = false,
): Command {
  const bytes = Uint8Array.from(usage.split(' '), (digits) => Number.parseInt(digits, 16));
  const opcode = bytes[0] as number;
  return {
    opcode,
    // (A service action's field may hold flags in its upper bits.)
    serviceAction: WITH_SERVICE_ACTION.has(opcode) ? (bytes[1] as number) & 0x1f : -1,
    name,
    usage: bytes,
    form: data[0],
    lengthAt: data[1] ?? 0,
    lengthSize: data[2] ?? 0,
    blocksOut: traits.blocksOut,
    access,
    accessOf: traits.accessOf,
    free6: traits.free6 === true,
    medium: traits.mediumless !== true,
    modifies,
    passesAttention: traits.passesAttention === true,
    needs: traits.needs ?? 0,
    run,
  };
}

/** A row for a command that changes the medium: optical units have none. */
function change(
  name: string,
  usage: string,
  data: readonly [DataForm, number?, number?],
  run: Handler,
  traits: Traits = {},
): Command {
  return row(name, usage, data, WRITES, run, { ...traits, needs: DISK | (traits.needs ?? 0) }, true);
}

/** Opcodes whose byte 1 holds a service action. */
const WITH_SERVICE_ACTION: ReadonlySet<number> = new Set([0x48, 0x5e, 0x5f, 0x83, 0x84, 0x9e, 0xa3]);

const ANYTIME: Traits = { free6: true, mediumless: true, passesAttention: true };
const MEDIUMLESS: Traits = { mediumless: true };
const OF_DISKS: Traits = { needs: DISK };
const OF_DISKS_MEDIUMLESS: Traits = { needs: DISK, mediumless: true };
const OF_DRIVES: Traits = { needs: OPTICAL };
const OF_DRIVES_MEDIUMLESS: Traits = { needs: OPTICAL, mediumless: true };

/** PREVENT ALLOW: allowing is free. */
function preventAccess(cdb: Uint8Array): Access {
  return preventField(cdb) === 0 ? FREE : WRITES;
}

/** START STOP UNIT: starting is free. */
function startStopAccess(cdb: Uint8Array): Access {
  return ((cdb[4] as number) & 0xf1) === 0x01 ? FREE : WRITES;
}

/** Every command there is, in the order of the opcodes. */
export const COMMANDS: readonly Command[] = [
  row('TEST UNIT READY', '00 00 00 00 00 04', [NO_DATA], FREE, testUnitReady),
  row('REQUEST SENSE', '03 01 00 00 ff 04', [PARAMETER_IN, 4, 1], FREE, requestSense, ANYTIME),
  row('READ(6)', '08 1f ff ff ff 04', [BLOCKS_IN, 4, 1], READS, read6, OF_DISKS),
  change('WRITE(6)', '0a 1f ff ff ff 04', [BLOCKS_OUT, 4, 1], write6),
  row('INQUIRY', '12 01 ff ff ff 04', [PARAMETER_IN, 3, 2], FREE, inquiry, ANYTIME),
  row('MODE SELECT(6)', '15 13 00 00 ff 04', [PARAMETER_OUT, 4, 1], WRITES, modeSelect6, MEDIUMLESS),
  row('RESERVE(6)', '16 11 00 00 00 04', [NO_DATA], FREE, reserve, MEDIUMLESS),
  row('RELEASE(6)', '17 11 00 00 00 04', [NO_DATA], FREE, release, { free6: true, mediumless: true }),
  row('MODE SENSE(6)', '1a 08 ff ff ff 04', [PARAMETER_IN, 4, 1], WRITES, modeSense6, MEDIUMLESS),
  row('START STOP UNIT', '1b 01 00 00 f7 04', [NO_DATA], WRITES, startStopUnit, {
    mediumless: true,
    accessOf: startStopAccess,
  }),
  row('PREVENT ALLOW MEDIUM REMOVAL', '1e 00 00 00 01 04', [NO_DATA], WRITES, preventAllowMediumRemoval, {
    mediumless: true,
    needs: REMOVABLE,
    accessOf: preventAccess,
  }),
  row('READ CAPACITY(10)', '25 00 ff ff ff ff 00 00 01 04', [PARAMETER_IN, 0, 0], FREE, readCapacity10),
  row('READ(10)', '28 f8 ff ff ff ff 00 ff ff 04', [BLOCKS_IN, 7, 2], READS, read10),
  change('WRITE(10)', '2a f8 ff ff ff ff 00 ff ff 04', [BLOCKS_OUT, 7, 2], write10),
  change('WRITE AND VERIFY(10)', '2e f6 ff ff ff ff 00 ff ff 04', [BLOCKS_OUT, 7, 2], writeAndVerify),
  row('VERIFY(10)', '2f f6 ff ff ff ff 00 ff ff 04', [COUNTED_OUT], READS, verify, { blocksOut: verifyBlocksOut }),
  row('PRE-FETCH(10)', '34 02 ff ff ff ff 00 ff ff 04', [NO_DATA], READS, prefetch10, OF_DISKS),
  row('SYNCHRONIZE CACHE(10)', '35 02 ff ff ff ff 00 ff ff 04', [NO_DATA], WRITES, synchronizeCache10),
  row('READ TOC/PMA/ATIP', '43 02 0f 00 00 00 ff ff ff c4', [PARAMETER_IN, 7, 2], READS, readToc, OF_DRIVES),
  row('GET CONFIGURATION', '46 03 ff ff 00 00 00 ff ff 04', [PARAMETER_IN, 7, 2], FREE, getConfiguration, {
    ...OF_DRIVES_MEDIUMLESS,
    passesAttention: true,
  }),
  row(
    'GET EVENT STATUS NOTIFICATION',
    '4a 01 00 00 ff 00 00 ff ff 04',
    [PARAMETER_IN, 7, 2],
    FREE,
    getEventStatusNotification,
    { ...OF_DRIVES_MEDIUMLESS, passesAttention: true },
  ),
  row(
    'READ DISC INFORMATION',
    '51 07 00 00 00 00 00 ff ff 04',
    [PARAMETER_IN, 7, 2],
    READS,
    readDiscInformation,
    OF_DRIVES,
  ),
  row(
    'READ TRACK INFORMATION',
    '52 03 ff ff ff ff 00 ff ff 04',
    [PARAMETER_IN, 7, 2],
    READS,
    readTrackInformation,
    OF_DRIVES,
  ),
  row(
    'READ DISC STRUCTURE',
    'ad 0f ff ff ff ff ff ff ff ff 00 04',
    [PARAMETER_IN, 8, 2],
    READS,
    readDiscStructure,
    OF_DRIVES,
  ),
  row('SET CD SPEED', 'bb 00 ff ff ff ff 00 00 00 00 00 04', [NO_DATA], FREE, testUnitReady, OF_DRIVES_MEDIUMLESS),
  row(
    'MECHANISM STATUS',
    'bd 00 00 00 00 00 00 00 ff ff 00 04',
    [PARAMETER_IN, 8, 2],
    FREE,
    mechanismStatus,
    OF_DRIVES_MEDIUMLESS,
  ),
  row('READ DEFECT DATA(10)', '37 00 1f 00 00 00 00 ff ff 04', [PARAMETER_IN, 7, 2], READS, readDefectData10, OF_DISKS),
  change('WRITE SAME(10)', '41 fe ff ff ff ff 00 ff ff 04', [COUNTED_OUT], writeSame10, {
    blocksOut: writeSameBlocksOut,
  }),
  change('UNMAP', '42 01 00 00 00 00 00 ff ff 04', [PARAMETER_OUT, 7, 2], unmap, { needs: THIN }),
  change('SANITIZE, BLOCK ERASE', '48 e2 ff ff ff ff ff ff ff 04', [NO_DATA], sanitizeBlockErase, MEDIUMLESS),
  change('SANITIZE, EXIT FAILURE MODE', '48 ff ff ff ff ff ff ff ff 04', [NO_DATA], exitFailureMode, MEDIUMLESS),
  row('MODE SELECT(10)', '55 13 00 00 00 00 00 ff ff 04', [PARAMETER_OUT, 7, 2], WRITES, modeSelect10, MEDIUMLESS),
  row('RESERVE(10)', '56 11 00 00 00 00 00 00 00 04', [NO_DATA], FREE, reserve, MEDIUMLESS),
  row('RELEASE(10)', '57 11 00 00 00 00 00 00 00 04', [NO_DATA], FREE, release, { free6: true, mediumless: true }),
  row('MODE SENSE(10)', '5a 18 ff ff 00 00 00 ff ff 04', [PARAMETER_IN, 7, 2], WRITES, modeSense10, MEDIUMLESS),
  row('READ KEYS', '5e 00 00 00 00 00 00 ff ff 04', [PARAMETER_IN, 7, 2], FREE, readKeys, MEDIUMLESS),
  row('READ RESERVATION', '5e 01 00 00 00 00 00 ff ff 04', [PARAMETER_IN, 7, 2], FREE, readReservation, MEDIUMLESS),
  row(
    'REPORT CAPABILITIES',
    '5e 02 00 00 00 00 00 ff ff 04',
    [PARAMETER_IN, 7, 2],
    FREE,
    reportCapabilities,
    MEDIUMLESS,
  ),
  row('READ FULL STATUS', '5e 03 00 00 00 00 00 ff ff 04', [PARAMETER_IN, 7, 2], FREE, readFullStatus, MEDIUMLESS),
  ...[
    'REGISTER',
    'RESERVE',
    'RELEASE',
    'CLEAR',
    'PREEMPT',
    'PREEMPT AND ABORT',
    'REGISTER AND IGNORE EXISTING KEY',
  ].map((name, action) =>
    row(name, `5f 0${action} ff 00 00 ff ff ff ff 04`, [PARAMETER_OUT, 5, 4], FREE, persistentReserveOut, MEDIUMLESS),
  ),
  row(
    'REGISTER AND MOVE',
    '5f 07 00 00 00 ff ff ff ff 04',
    [PARAMETER_OUT, 5, 4],
    FREE,
    persistentReserveOut,
    MEDIUMLESS,
  ),
  row(
    'EXTENDED COPY(LID1)',
    '83 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 04',
    [PARAMETER_OUT, 10, 4],
    WRITES,
    extendedCopy,
    OF_DISKS,
  ),
  row(
    'RECEIVE COPY STATUS(LID1)',
    '84 00 ff 00 00 00 00 00 00 00 ff ff ff ff 00 04',
    [PARAMETER_IN, 10, 4],
    WRITES,
    copyStatus,
    OF_DISKS_MEDIUMLESS,
  ),
  row(
    'RECEIVE COPY OPERATING PARAMETERS',
    '84 03 00 00 00 00 00 00 00 00 ff ff ff ff 00 04',
    [PARAMETER_IN, 10, 4],
    WRITES,
    copyOperatingParameters,
    OF_DISKS_MEDIUMLESS,
  ),
  row(
    'READ(16)',
    '88 f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04',
    [BLOCKS_IN, 10, 4],
    READS,
    read16Command,
    OF_DISKS,
  ),
  change('COMPARE AND WRITE', '89 f8 ff ff ff ff ff ff ff ff 00 00 00 ff 00 04', [COUNTED_OUT], compareAndWrite, {
    blocksOut: compareAndWriteBlocksOut,
  }),
  change('WRITE(16)', '8a f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04', [BLOCKS_OUT, 10, 4], write16Command),
  change('ORWRITE(16)', '8b f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04', [BLOCKS_OUT, 10, 4], orWrite),
  change(
    'WRITE AND VERIFY(16)',
    '8e f6 ff ff ff ff ff ff ff ff ff ff ff ff 00 04',
    [BLOCKS_OUT, 10, 4],
    writeAndVerify,
  ),
  row('VERIFY(16)', '8f f6 ff ff ff ff ff ff ff ff ff ff ff ff 00 04', [COUNTED_OUT], READS, verify, {
    ...OF_DISKS,
    blocksOut: verifyBlocksOut,
  }),
  row('PRE-FETCH(16)', '90 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 04', [NO_DATA], READS, prefetch16, OF_DISKS),
  row(
    'SYNCHRONIZE CACHE(16)',
    '91 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 04',
    [NO_DATA],
    WRITES,
    synchronizeCache16,
    OF_DISKS,
  ),
  change('WRITE SAME(16)', '93 ff ff ff ff ff ff ff ff ff ff ff ff ff 00 04', [COUNTED_OUT], writeSame16, {
    blocksOut: writeSameBlocksOut,
  }),
  row(
    'READ CAPACITY(16)',
    '9e 10 ff ff ff ff ff ff ff ff ff ff ff ff 01 04',
    [PARAMETER_IN, 10, 4],
    FREE,
    readCapacity16,
    OF_DISKS,
  ),
  row(
    'GET LBA STATUS',
    '9e 12 ff ff ff ff ff ff ff ff ff ff ff ff 00 04',
    [PARAMETER_IN, 10, 4],
    READS,
    getLbaStatus,
    OF_DISKS,
  ),
  row(
    'REPORT LUNS',
    'a0 00 ff 00 00 00 ff ff ff ff 00 04',
    [PARAMETER_IN, 6, 4],
    FREE,
    (unit, task) => reportLuns(unit.surroundings, task),
    ANYTIME,
  ),
  row(
    'REPORT TARGET PORT GROUPS',
    'a3 ea 00 00 00 00 ff ff ff ff 00 04',
    [PARAMETER_IN, 6, 4],
    FREE,
    reportTargetPortGroups,
    MEDIUMLESS,
  ),
  row(
    'REPORT SUPPORTED OPERATION CODES',
    'a3 0c 87 ff ff ff ff ff ff ff 00 04',
    [PARAMETER_IN, 6, 4],
    WRITES,
    (unit, task) => reportSupportedOpcodes(COMMANDS, unit, task),
    MEDIUMLESS,
  ),
  row(
    'REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS',
    'a3 0d 80 00 00 00 ff ff ff ff 00 04',
    [PARAMETER_IN, 6, 4],
    WRITES,
    reportSupportedTaskManagement,
    MEDIUMLESS,
  ),
  row('READ(12)', 'a8 f8 ff ff ff ff ff ff ff ff 00 04', [BLOCKS_IN, 6, 4], READS, read12),
  change('WRITE(12)', 'aa f8 ff ff ff ff ff ff ff ff 00 04', [BLOCKS_OUT, 6, 4], write12),
  change('WRITE AND VERIFY(12)', 'ae f6 ff ff ff ff ff ff ff ff 00 04', [BLOCKS_OUT, 6, 4], writeAndVerify),
  row('VERIFY(12)', 'af f6 ff ff ff ff ff ff ff ff 00 04', [COUNTED_OUT], READS, verify, {
    blocksOut: verifyBlocksOut,
  }),
  row(
    'READ DEFECT DATA(12)',
    'b7 1f 00 00 00 00 ff ff ff ff 00 04',
    [PARAMETER_IN, 6, 4],
    READS,
    readDefectData12,
    OF_DISKS,
  ),
];

const BY_OPCODE: (Command | undefined)[] = new Array(256).fill(undefined);
const BY_ACTION: (Command | undefined)[] = new Array(256 * 32).fill(undefined);
for (const command of COMMANDS) {
  if (command.serviceAction < 0) BY_OPCODE[command.opcode] = command;
  else BY_ACTION[command.opcode * 32 + command.serviceAction] = command;
}

/** The command that a CDB is; undefined for what there is not. */
export function commandOf(cdb: Uint8Array): Command | undefined {
  const opcode = cdb[0] as number;
  return BY_OPCODE[opcode] ?? BY_ACTION[opcode * 32 + ((cdb[1] as number) & 0x1f)];
}

/** An opcode that exists, though perhaps not with every service action. */
export function hasServiceActions(opcode: number): boolean {
  return WITH_SERVICE_ACTION.has(opcode);
}
