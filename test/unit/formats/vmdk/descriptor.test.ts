import assert from 'node:assert/strict';
import { test } from 'node:test';
import { looksLikeDescriptor, MAX_DESCRIPTOR, VmdkDescriptor } from '../../../../formats/vmdk/descriptor.ts';
import { descriptorText, geometryOf } from '../../../../formats/vmdk/write-descriptor.ts';

const TEXT = `# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 4192256 VMFS "disk-flat.vmdk"
rdonly 2048 flat "b c.vmdk" 63
NOACCESS 10 ZERO
RW 5 FLAT "d.vmdk" 0 partitionUUID deviceID

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.longContentID = "0123456789abcdef0123456789abcdef"
someVendor.unknown =   "kept  "
`;

const parse = (text: string | Uint8Array): VmdkDescriptor =>
  new VmdkDescriptor(typeof text === 'string' ? Buffer.from(text) : text, '/vm/disk.vmdk');

test('settings and extents are read as they are written, in any case', () => {
  const descriptor = parse(TEXT);
  assert.equal(descriptor.cid('CID'), 0xfffffffe);
  assert.equal(descriptor.cid('parentCID'), 0xffffffff);
  assert.equal(descriptor.createType, 'vmfs');
  assert.equal(descriptor.get('DDB.ADAPTERTYPE'), 'lsilogic');
  assert.equal(descriptor.get('nothing'), undefined);
  assert.deepEqual(
    descriptor.extents.map(({ access, length, type, file, offset, line }) => [
      access,
      length,
      type,
      file,
      offset,
      line,
    ]),
    [
      ['RW', 4192256 * 512, 'VMFS', 'disk-flat.vmdk', 0, 9],
      ['RDONLY', 2048 * 512, 'FLAT', 'b c.vmdk', 63 * 512, 10],
      ['NOACCESS', 5120, 'ZERO', undefined, 0, 11],
      ['RW', 2560, 'FLAT', 'd.vmdk', 0, 12],
    ],
  );
  assert.equal(descriptor.settings('ddb.').get('ddb.adaptertype'), 'lsilogic');
});

test('what is not changed stays byte for byte: blanks, line ends, unknown keys, bytes of any encoding', () => {
  const bytes = Buffer.concat([
    Buffer.from(TEXT.replaceAll('\n', '\r\n')),
    Buffer.from([0x23, 0xff, 0xfe, 0x80, 0x0a]),
  ]);
  const descriptor = parse(bytes);
  assert.deepEqual(Buffer.from(descriptor.toBytes()), bytes);
  descriptor.set('CID', '12345678');
  const changed = Buffer.from(descriptor.toBytes());
  assert.equal(changed.toString('latin1'), bytes.toString('latin1').replace('CID=fffffffe', 'CID=12345678'));
  descriptor.set('ddb.adapterType', 'ide');
  assert.match(Buffer.from(descriptor.toBytes()).toString('latin1'), /ddb\.adapterType = "ide"\r\n/);
  descriptor.set('ddb.new', 'x', 'ddb.adapterType');
  assert.match(Buffer.from(descriptor.toBytes()).toString('latin1'), /"ide"\r\nddb\.new = "x"\r\n/);
});

test('file names are decoded as the descriptor says', () => {
  const line = (encoding: string, name: number[]): Buffer =>
    Buffer.concat([
      Buffer.from(`version=1\nencoding="${encoding}"\nRW 1 FLAT "`),
      Buffer.from(name),
      Buffer.from('.vmdk" 0\n'),
    ]);
  assert.equal(parse(line('UTF-8', [0xc3, 0xa4])).extents[0]?.file, 'ä.vmdk');
  assert.equal(parse(line('windows-1252', [0xe4])).extents[0]?.file, 'ä.vmdk');
  assert.equal(parse(line('GBK', [0xc4, 0xe3])).extents[0]?.file, '你.vmdk');
  assert.equal(parse(line('Shift_JIS', [0x93, 0xfa])).extents[0]?.file, '日.vmdk');
});

test('the first line that is no comment decides whether a text is a descriptor', () => {
  assert.equal(looksLikeDescriptor(Buffer.from(TEXT)), true);
  assert.equal(looksLikeDescriptor(Buffer.from('\n# x\n  version = 3 \n')), true);
  assert.equal(looksLikeDescriptor(Buffer.from('version=1x\n')), false);
  assert.equal(looksLikeDescriptor(Buffer.from('hello\nversion=1\n')), false);
  assert.equal(looksLikeDescriptor(new Uint8Array(0)), false);
});

const REFUSED: readonly [string, string, RegExp][] = [
  ['version=4\n', 'UNSUPPORTED', /version 4/],
  ['version=1\nRW x FLAT "a" 0\n', 'BAD_HEADER', /line 2/],
  ['version=1\nRW 1 FLAT\n', 'BAD_HEADER', /line 2.*no file/],
  ['version=1\n\nRW 99999999999999999999 ZERO\n', 'BAD_HEADER', /line 3/],
  ['version=1\nRW 9000000000000 ZERO\nRW 9000000000000 ZERO\n', 'BAD_HEADER', /line 3.*2\^53/],
  ['version=1\nRW 1 FLAT "a" 99999999999999999\n', 'BAD_HEADER', /offset/],
  [`version=1\n${'RW 1 ZERO\n'.repeat(4097)}`, 'BAD_HEADER', /more than 4096/],
];
for (const [text, code, message] of REFUSED) {
  test(`a descriptor is refused that holds ${JSON.stringify(text.slice(0, 60))}`, () => {
    assert.throws(() => parse(text), { code, message, path: '/vm/disk.vmdk' });
  });
}

test('a descriptor over 1 MiB is refused, and a CID that is no number', () => {
  assert.throws(() => parse(Buffer.concat([Buffer.from(TEXT), Buffer.alloc(MAX_DESCRIPTOR, 0x23)])), {
    code: 'TOO_LARGE',
  });
  assert.throws(() => parse('version=1\nCID=hello\n').cid('CID'), { code: 'BAD_HEADER', field: 'CID' });
});

test('geometry is what VMware computes', () => {
  assert.deepEqual(geometryOf(10 * 2 ** 30, 'lsilogic'), { cylinders: 1306, heads: 255, sectors: 63 });
  assert.deepEqual(geometryOf(2 ** 40, 'lsilogic').cylinders, 65535);
  assert.deepEqual(geometryOf(4 * 2 ** 30, 'ide'), { cylinders: 8323, heads: 16, sectors: 63 });
  assert.deepEqual(geometryOf(2 ** 40, 'ide').cylinders, 16383);
  assert.deepEqual(geometryOf(512, 'buslogic').cylinders, 1);
});

test('a new descriptor has the ids that VMware and VirtualBox look for', () => {
  const text = descriptorText({
    createType: 'monolithicSparse',
    size: 2 ** 30,
    extents: ['RW 2097152 SPARSE "a.vmdk"'],
    adapterType: 'pvscsi',
    hwVersion: '14',
    longContentId: '00112233445566778899aabbccddeeff',
  });
  const descriptor = parse(text);
  assert.equal(descriptor.cid('CID'), 0xccddeeff);
  assert.equal(descriptor.get('ddb.longContentID'), '00112233445566778899aabbccddeeff');
  assert.equal(descriptor.get('ddb.adapterType'), 'lsilogic');
  assert.equal(descriptor.get('ddb.virtualHWVersion'), '14');
  assert.equal(descriptor.get('ddb.uuid.parent'), '00000000-0000-0000-0000-000000000000');
  assert.match(descriptor.get('ddb.uuid.image') ?? '', /^[0-9a-f]{8}-[0-9a-f]{4}-4/);
});
