import { write16, write32, write64 } from './bytes.ts';
import {
  COPY_COMMANDS,
  COPY_DESCRIPTOR_TYPES,
  MAX_COPY_SEGMENT,
  MAX_DESCRIPTOR_LIST,
  MAX_SEGMENT_DESCRIPTORS,
  MAX_TARGET_DESCRIPTORS,
} from './copy-limits.ts';
import { limitsOf } from './limits.ts';
import { MAX_SENSE_LENGTH } from './sense.ts';
import { TARGET_PORT_GROUP } from './target-port-groups.ts';
import type { LogicalUnit } from './unit.ts';

type Page = (unit: LogicalUnit) => Uint8Array;

/** VPD pages of every unit by page code (SPC-4 section 7.8), ascending. None of them names anything of the host. */
const PAGES: readonly (readonly [number, Page])[] = [
  [0x80, unitSerialNumber],
  [0x83, deviceIdentification],
  [0x86, extendedInquiry],
];
const OPTICAL_PAGES = pages(PAGES);
/** A disk has those of copies and of SBC-3 section 6.6 as well. */
const DISK_PAGES = pages([
  ...PAGES,
  [0x8f, thirdPartyCopy],
  [0xb0, blockLimits],
  [0xb1, blockDeviceCharacteristics],
  [0xb2, logicalBlockProvisioning],
]);

function pages(entries: readonly (readonly [number, Page])[]): ReadonlyMap<number, Page> {
  const codes = [0x00, ...entries.map(([code]) => code)];
  return new Map<number, Page>([[0x00, () => supportedPages(codes)], ...entries]);
}

/** One VPD page; undefined when there is none of that code. */
export function vitalProductData(unit: LogicalUnit, code: number): Uint8Array | undefined {
  return (unit.optical ? OPTICAL_PAGES : DISK_PAGES).get(code)?.(unit);
}

/** Page 00h. */
export function supportedPages(codes: readonly number[]): Uint8Array {
  return page(0x00, Uint8Array.from(codes));
}

function page(code: number, body: Uint8Array): Uint8Array {
  const data = new Uint8Array(4 + body.length);
  data[1] = code;
  write16(data, 2, body.length);
  data.set(body, 4);
  return data;
}

function unitSerialNumber(unit: LogicalUnit): Uint8Array {
  return page(0x80, Buffer.from(unit.identity.serial, 'latin1'));
}

const BINARY = 1;
const ASCII = 2;
const UTF8 = 3;
const OF_UNIT = 0x00;
const OF_PORT = 0x10;
const OF_DEVICE = 0x20;
const T10_VENDOR = 1;
const NAA = 3;
const RELATIVE_PORT = 4;
const PORT_GROUP = 5;
const NAME_STRING = 8;

/** Page 83h: the unit by NAA and T10 vendor designators; port, port group and device of the first port. */
function deviceIdentification(unit: LogicalUnit): Uint8Array {
  const { identity, surroundings } = unit;
  const designators = [
    designator(BINARY, OF_UNIT | NAA, identity.naa),
    designator(
      ASCII,
      OF_UNIT | T10_VENDOR,
      Buffer.from(identity.vendor.padEnd(8).slice(0, 8) + identity.serial, 'latin1'),
    ),
  ];
  const port = surroundings.ports[0];
  if (port !== undefined) {
    const protocol = surroundings.protocol;
    designators.push(designator(BINARY, OF_PORT | RELATIVE_PORT, Uint8Array.of(0, 0, port.id >> 8, port.id), protocol));
    designators.push(
      designator(
        BINARY,
        OF_PORT | PORT_GROUP,
        Uint8Array.of(0, 0, TARGET_PORT_GROUP >> 8, TARGET_PORT_GROUP),
        protocol,
      ),
    );
    designators.push(designator(UTF8, OF_PORT | NAME_STRING, nameString(port.name), protocol));
  }
  if (surroundings.name !== undefined) {
    designators.push(designator(UTF8, OF_DEVICE | NAME_STRING, nameString(surroundings.name), surroundings.protocol));
  }
  return page(0x83, Buffer.concat(designators));
}

/** @param protocol of the port that the designator is about: sets PIV */
function designator(codeSet: number, kind: number, value: Uint8Array, protocol?: number): Uint8Array {
  const data = new Uint8Array(4 + value.length);
  data[0] = codeSet | ((protocol ?? 0) << 4);
  data[1] = kind | (protocol === undefined ? 0 : 0x80);
  data[3] = value.length;
  data.set(value, 4);
  return data;
}

/** A SCSI name string: ends with a zero, padded to a multiple of four (SPC-4 section 7.8.6.11), at most 252 bytes. */
function nameString(name: string): Uint8Array {
  const text = Buffer.from(name, 'utf8').subarray(0, 251);
  const data = new Uint8Array(Math.ceil((text.length + 1) / 4) * 4);
  data.set(text);
  return data;
}

/** Page 86h. */
function extendedInquiry(): Uint8Array {
  const body = new Uint8Array(60);
  body[1] = 0x07; // HEADSUP, ORDSUP, SIMPSUP
  body[2] = 0x01; // V_SUP: a volatile cache
  body[9] = MAX_SENSE_LENGTH;
  return page(0x86, body);
}

/** Page 8Fh, third-party copy: EXTENDED COPY (LID1) from block device to block device. */
function thirdPartyCopy(): Uint8Array {
  const commands = COPY_COMMANDS.flatMap(({ opcode, actions }) => [opcode, actions.length, ...actions]);
  const parameters = new Uint8Array(28);
  write16(parameters, 4, MAX_TARGET_DESCRIPTORS);
  write16(parameters, 6, MAX_SEGMENT_DESCRIPTORS);
  write32(parameters, 8, MAX_DESCRIPTOR_LIST);
  const general = new Uint8Array(32);
  write32(general, 0, 1); // total concurrent copies
  write32(general, 4, 1);
  write32(general, 8, MAX_COPY_SEGMENT);
  general[12] = 9; // granularity of data segments, as a power of two
  return page(
    0x8f,
    Buffer.concat([
      copyDescriptor(0x0001, [commands.length, ...commands]),
      copyDescriptor(0x0004, parameters),
      copyDescriptor(0x0008, [COPY_DESCRIPTOR_TYPES.length, ...COPY_DESCRIPTOR_TYPES]),
      copyDescriptor(0x000c, [0, 2, 0xff, 0xff]), // FFFFh: the unit that the command was sent to
      copyDescriptor(0x8001, general),
    ]),
  );
}

function copyDescriptor(type: number, body: ArrayLike<number>): Uint8Array {
  const data = new Uint8Array(4 + Math.ceil(body.length / 4) * 4);
  write16(data, 0, type);
  write16(data, 2, data.length - 4);
  data.set(body, 4);
  return data;
}

/** Page B0h. */
function blockLimits(unit: LogicalUnit): Uint8Array {
  const limits = limitsOf(unit);
  const body = new Uint8Array(60);
  body[0] = 0x01; // WSNZ: WRITE SAME of zero blocks is refused
  body[1] = limits.compareAndWrite;
  write16(body, 2, limits.granularity);
  write32(body, 4, limits.transfer);
  write32(body, 8, limits.optimalTransfer);
  if (unit.thin) {
    write32(body, 16, limits.unmap);
    write32(body, 20, limits.unmapDescriptors);
    write32(body, 24, limits.unmapGranularity);
    write32(body, 28, 0x80000000); // UGAVALID, aligned to 0
  }
  write64(body, 32, limits.writeSame);
  return page(0xb0, body);
}

/** Page B1h: does not rotate; after a block erase reads work at once. */
function blockDeviceCharacteristics(): Uint8Array {
  const body = new Uint8Array(60);
  write16(body, 0, 0x0001);
  body[3] = 0x40; // WABEREQ
  return page(0xb1, body);
}

/** Page B2h. */
function logicalBlockProvisioning(unit: LogicalUnit): Uint8Array {
  const body = new Uint8Array(4);
  if (unit.thin) {
    body[1] = 0xe4; // LBPU, LBPWS, LBPWS10, LBPRZ
    body[2] = 0x02; // thin provisioned
  }
  return page(0xb2, body);
}
