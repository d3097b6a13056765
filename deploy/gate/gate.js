// The gate's checks in addition to nginx's own: a certificate's SHA-256, and the name in a request.
// The requests are the engine's FlatBuffers tables: field 1 is the silo's identity, fl_id.
import crypto from 'crypto';
import fs from 'fs';

// Names are at the beginning of a request, before the weights; our silos need about 60 kB.
const HEAD = 1 << 20;
const IDENTITY = 1;
const LONGEST = 200;

function fingerprint(r) {
    const pem = r.variables.ssl_client_raw_cert;
    if (!pem) {
        return '';
    }
    const der = Buffer.from(pem.replace(/-----[A-Z ]+-----|\s/g, ''), 'base64');
    return crypto.createHash('sha256').update(der).digest('hex');
}

// Return the first bytes of the request; nginx puts a large one into a file.
function head(r) {
    const file = r.variables.request_body_file;
    if (!file) {
        return r.requestBuffer || Buffer.alloc(0);
    }
    const bytes = Buffer.alloc(HEAD);
    const handle = fs.openSync(file);
    try {
        return bytes.subarray(0, fs.readSync(handle, bytes, 0, HEAD, 0));
    } finally {
        fs.closeSync(handle);
    }
}

// Return the text in a field of the root table; reading outside of the bytes throws.
function text(bytes, field) {
    const table = bytes.readUInt32LE(0);
    const fields = table - bytes.readInt32LE(table);
    const entry = 4 + 2 * field;
    const place = entry < bytes.readUInt16LE(fields) ? bytes.readUInt16LE(fields + entry) : 0;
    if (!place) {
        return '';
    }
    const begin = table + place + bytes.readUInt32LE(table + place);
    const length = bytes.readUInt32LE(begin);
    if (length > LONGEST || begin + 4 + length > bytes.length) {
        throw new RangeError('a text outside of the request');
    }
    return bytes.subarray(begin + 4, begin + 4 + length).toString('utf8');
}

// "hospital_a_0 (30)" is worker 0 of hospital_a, with 30 images. The pattern's $ alone would accept a
// line break after it.
function belongs(identity, silo) {
    return identity.startsWith(silo + '_') && identity.endsWith(')')
        && /^\d+ \(\d+\)$/.test(identity.substring(silo.length + 1));
}

// Pass a request on to the server if its identity belongs to the certificate's silo.
function passOn(r) {
    let identity;
    try {
        identity = text(head(r), IDENTITY);
    } catch (error) {
        r.warn(`a request without a readable fl_id: ${error.message}`);
        r.return(400);
        return;
    }
    r.variables.identity = identity;
    if (belongs(identity, r.variables.silo)) {
        r.internalRedirect('@server');
    } else {
        r.return(409);
    }
}

export default {fingerprint, passOn};
