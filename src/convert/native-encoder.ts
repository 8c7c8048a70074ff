import { outputOf } from '../../formats/core/inflate.ts';
import { alignUp } from '../../formats/core/units.ts';
import type { Compression, EncodedUnit } from '../../formats/index.ts';
import { packUnits } from '../io/native-pack.ts';
import type { EncodedUnits, UnitEncoder } from './encoder.ts';

/** Compresses on the threads of the I/O queue: a buffer is one request, whose streams come in memory that is used again. */
export class NativeEncoder implements UnitEncoder {
  readonly unit: number;
  readonly #packing: Compression['packing'];
  readonly #outputs: Uint8Array[] = [];

  constructor({ unit, packing }: Pick<Compression, 'unit' | 'packing'>) {
    this.unit = unit;
    this.#packing = packing;
  }

  async encode(buffer: Uint8Array, length: number): Promise<EncodedUnits> {
    const { unit } = this;
    const room = alignUp(length, unit);
    const free = this.#outputs.findIndex((each) => each.length >= room);
    const output = free < 0 ? outputOf(room) : (this.#outputs.splice(free, 1)[0] as Uint8Array);
    const release = (): void => {
      this.#outputs.push(output);
    };
    const lengths = new Int32Array(room / unit);
    try {
      await packUnits(this.#packing, unit, buffer.subarray(0, length), output, lengths);
    } catch (error) {
      release();
      throw error;
    }
    let at = 0;
    const units = Array.from(lengths, (bytes): EncodedUnit => {
      if (bytes < 0) return null;
      at += bytes;
      return output.subarray(at - bytes, at);
    });
    return { units, release };
  }

  async close(): Promise<void> {}
}
