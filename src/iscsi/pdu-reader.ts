import { ProtocolError } from '../../formats/core/errors.ts';
import type { Crc32c } from './digest.ts';
import { AT_AHS_LENGTH, BHS_LENGTH, DIGEST_LENGTH, dataSegmentLength, MAX_AHS_LENGTH } from './pdu.ts';

/** Who gets the PDUs, piece by piece: begin, data (none or several times), end. */
export interface PduHandler {
  /**
   * A header is complete. View and bytes are valid during the call only.
   *
   * @param headerLength BHS and additional header segments
   * @param dataLength bytes of data that come, without padding
   */
  begin(view: DataView, at: number, headerLength: number, dataLength: number): void;
  /** A part of the data segment: [from, to) of bytes; valid during the call only. */
  data(bytes: Uint8Array, from: number, to: number): void;
  /** The PDU is complete. */
  end(dataDigestGood: boolean): void;
}

const HEADER = 0;
const DATA = 1;
const TRAILER = 2;

/**
 * Cuts a byte stream into PDUs. What lies whole in a chunk is parsed in place; only headers that straddle chunks are
 * copied, data never is. Lengths are bounded before a single byte is waited for.
 */
export class PduReader {
  /** Who gets what is read; another one may take over between PDUs. */
  handler: PduHandler;
  /** Longest data segment that is accepted. */
  maxDataLength: number;
  /** Most bytes of additional header segments that are accepted. */
  maxAhsLength = MAX_AHS_LENGTH;
  headerDigest = false;
  dataDigest = false;
  headerDigestErrors = 0;
  readonly #crc32c: Crc32c;
  #stopped = false;
  #phase: typeof HEADER | typeof DATA | typeof TRAILER = HEADER;
  /** A header that straddles chunks. */
  readonly #header = new Uint8Array(BHS_LENGTH + MAX_AHS_LENGTH + DIGEST_LENGTH);
  readonly #headerView = new DataView(this.#header.buffer);
  #have = 0;
  #dataLeft = 0;
  /** Padding and digest behind the data. */
  #padLeft = 0;
  #digestLeft = 0;
  #digest = 0;
  #crc = 0;
  /** The view that goes with the last chunk. */
  #bytes: Uint8Array | undefined;
  #view: DataView = this.#headerView;

  constructor(handler: PduHandler, options: { maxDataLength: number; crc32c: Crc32c }) {
    this.handler = handler;
    this.maxDataLength = options.maxDataLength;
    this.#crc32c = options.crc32c;
  }

  /** Takes no further bytes, also of the chunk being read. */
  stop(): void {
    this.#stopped = true;
  }

  /**
   * Takes [start, end) of a chunk, cut anywhere.
   *
   * @throws {ProtocolError} for lengths beyond the limits and bad header digests, and whatever the handler throws
   */
  receive(bytes: Uint8Array, start = 0, end: number = bytes.length): void {
    if (bytes !== this.#bytes) {
      this.#bytes = bytes;
      this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    }
    let at = start;
    while (at < end && !this.#stopped) {
      if (this.#phase === HEADER) at = this.#readHeader(bytes, at, end);
      else if (this.#phase === DATA) at = this.#readData(bytes, at, end);
      else at = this.#readTrailer(bytes, at, end);
    }
  }

  #readHeader(bytes: Uint8Array, at: number, end: number): number {
    if (this.#have === 0 && end - at >= BHS_LENGTH) {
      const length = this.#checkLengths(this.#view, at);
      if (end - at >= length) {
        this.#begin(bytes, this.#view, at, length);
        return at + length;
      }
    }
    const need = this.#have < BHS_LENGTH ? BHS_LENGTH : this.#checkLengths(this.#headerView, 0);
    const take = Math.min(need - this.#have, end - at);
    this.#header.set(bytes.subarray(at, at + take), this.#have);
    this.#have += take;
    if (this.#have >= BHS_LENGTH) {
      const length = this.#checkLengths(this.#headerView, 0);
      if (this.#have === length) {
        this.#have = 0;
        this.#begin(this.#header, this.#headerView, 0, length);
      }
    }
    return at + take;
  }

  /** Length of the header with its additional segments and digest. */
  #checkLengths(view: DataView, at: number): number {
    const ahs = view.getUint8(at + AT_AHS_LENGTH) * 4;
    if (ahs > this.maxAhsLength) throw new ProtocolError('PROTOCOL', `additional header segments of ${ahs} bytes`);
    const data = dataSegmentLength(view, at);
    if (data > this.maxDataLength) throw new ProtocolError('PROTOCOL', `data segment of ${data} bytes`);
    return BHS_LENGTH + ahs + (this.headerDigest ? DIGEST_LENGTH : 0);
  }

  #begin(bytes: Uint8Array, view: DataView, at: number, length: number): void {
    let headerLength = length;
    if (this.headerDigest) {
      headerLength -= DIGEST_LENGTH;
      const digest = view.getUint32(at + headerLength, true);
      if (this.#crc32c(bytes.subarray(at, at + headerLength)) !== digest) {
        // Nothing in the header can be believed, its length least of all (RFC 7143 section 7.7).
        this.headerDigestErrors++;
        throw new ProtocolError('PROTOCOL', 'header digest error');
      }
    }
    const data = dataSegmentLength(view, at);
    if (data > 0) {
      this.#dataLeft = data;
      this.#padLeft = -data & 3;
      this.#digestLeft = this.dataDigest ? DIGEST_LENGTH : 0;
      this.#digest = 0;
      this.#crc = 0;
      this.#phase = DATA;
      this.handler.begin(view, at, headerLength, data);
    } else {
      this.handler.begin(view, at, headerLength, 0);
      if (!this.#stopped) this.handler.end(true);
    }
  }

  #readData(bytes: Uint8Array, at: number, end: number): number {
    const take = Math.min(this.#dataLeft, end - at);
    if (this.dataDigest) this.#crc = this.#crc32c(bytes.subarray(at, at + take), this.#crc);
    this.#dataLeft -= take;
    this.handler.data(bytes, at, at + take);
    if (this.#dataLeft === 0) {
      this.#phase = TRAILER;
      if (this.#padLeft + this.#digestLeft === 0) this.#finish();
    }
    return at + take;
  }

  #readTrailer(bytes: Uint8Array, from: number, end: number): number {
    let at = from;
    if (this.#padLeft > 0) {
      const take = Math.min(this.#padLeft, end - at);
      if (this.dataDigest) this.#crc = this.#crc32c(bytes.subarray(at, at + take), this.#crc);
      this.#padLeft -= take;
      at += take;
    }
    for (; this.#digestLeft > 0 && at < end; at++) {
      // Little-endian: the first byte is the lowest.
      this.#digest |= (bytes[at] as number) << (8 * (DIGEST_LENGTH - this.#digestLeft--));
    }
    if (this.#padLeft + this.#digestLeft === 0) this.#finish();
    return at;
  }

  #finish(): void {
    this.#phase = HEADER;
    if (!this.#stopped) this.handler.end(!this.dataDigest || this.#digest >>> 0 === this.#crc);
  }
}
