/** How much of a file programs look at when they find out its format, bytes. */
export const HEAD = 4096;

interface Magic {
  readonly format: string;
  readonly at: number;
  readonly bytes: Uint8Array;
}

const magic = (format: string, at: number, text: string): Magic => ({ format, at, bytes: Buffer.from(text, 'latin1') });

/**
 * What makes QEMU and us take a file for something else than raw. LUKS is left out: a guest may well encrypt the whole disk, and a LUKS
 * header names no other files.
 */
const MAGICS: readonly Magic[] = [
  magic('qcow2', 0, 'QFI\xfb'),
  magic('qed', 0, 'QED\0'),
  magic('vmdk', 0, 'KDMV'),
  magic('vmdk', 0, 'COWD'),
  magic('vmdk', 0, '# Disk DescriptorFile'),
  magic('vhdx', 0, 'vhdxfile'),
  magic('vpc', 0, 'conectix'),
  magic('vdi', 0x40, '\x7f\x10\xda\xbe'),
  magic('parallels', 0, 'WithoutFreeSpace'),
  magic('parallels', 0, 'WithouFreSpacExt'),
  magic('bochs', 0, 'Bochs Virtual HD Image'),
];

/** The format that the first bytes of a file would be taken for; undefined: raw. */
export function formatOfHead(head: Uint8Array): string | undefined {
  const holds = ({ at, bytes }: Magic): boolean =>
    head.length >= at + bytes.length && bytes.every((byte, i) => head[at + i] === byte);
  return MAGICS.find(holds)?.format;
}
